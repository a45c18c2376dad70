"""Action parsers against the reference's records and against wild text."""

import json
import lzma
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path

from sdar_jax.envs.action_parser import (
  ALFWORLD_FALLBACK,
  WEBSHOP_FALLBACK,
  parse_reference,
  parse_strict,
)

SAMPLE = Path(__file__).parents[1] / 'golden/action_parsers.jsonl.xz'
FALLBACK = {'alfworld': ALFWORLD_FALLBACK, 'webshop': WEBSHOP_FALLBACK}
PIECES = [
  *('<think>', '</think>', '<action>', '</action>', '<THINK>', '<Action>', '<action'),
  *('look', 'go to desk 1', ' ', '\n', '\t', '\u3000', '<', '>', '/', '拿', 'あ', '한'),
  *('\ud800', '\udfff', '\U0001f600', '\x00', 'İ', 'ſ', 'ß', '\u4e00', '\u9fff'),
]
ADMISSIBLE = ('look', 'go to desk 1')


def disagreements(records):
  for record in records:
    if record['env'] in FALLBACK:
      parsed = parse_reference(record['response'], FALLBACK[record['env']])
      if (parsed.action, parsed.valid) != (record['action'], bool(record['valid'])):
        yield record, parsed


@pytest.mark.parametrize('where', ['sample', 'all'])
def test_reference_mode_agrees_with_the_records(where):
  path = SAMPLE
  if where == 'all':
    path = shared_path('golden/parsers/parsers.public.jsonl.xz')
  with lzma.open(path, 'rt', encoding='utf-8') as lines:
    records = [json.loads(line) for line in lines]
  counts = {env: sum(r['env'] == env for r in records) for env in FALLBACK}
  assert min(counts.values()) > 600
  assert not list(disagreements(records))


@pytest.mark.parametrize(
  'response, action, valid',
  [
    ('<think>a</think><action>Go to Desk 1</action>', 'go to desk 1', True),
    ('<think>a</think><ACTION> look </Action> tail', 'look', True),
    ('<Think>a</Think><action>look</action>', 'look', False),
    ('<action>look</action>', 'look', False),
    ('<think></think><action>拿 mug</action>', '拿 mug', False),
    ('<think></think><action>あ</action>', 'あ', True),
    ('<think></think></action>x<action>', '', True),
    ('<think></think><action></action>', '', True),
    ('</think><think><action>a</action><action>b</action>', 'a', True),
    ('<think></think>' + 'X' * 40, 'x' * 30, False),
    ('<think></think><action>\ud800</action>', '\ufffd', True),
  ],
)
def test_reference_mode_keeps_the_oddities(response, action, valid):
  parsed = parse_reference(response)
  assert (parsed.action, parsed.valid) == (action, valid)


def test_the_fallback_is_a_length():
  assert parse_reference('abcdef' * 9, 20).action == ('abcdef' * 9)[-20:]
  assert parse_reference('abcdef' * 9).action == ('abcdef' * 9)[-30:]


@pytest.mark.parametrize(
  'response, action, valid',
  [
    ('<think>I see.</think>\n<action> go to desk 1\n</action>', 'go to desk 1', True),
    ('So: <think></think> then <action>look</action>.', 'look', True),
    ('<think>a</think><action>Look</action>', 'Look', False),
    ('<think>a</think><action>dance</action>', 'dance', False),
    ('<think>a</think><action></action>', '', False),
    ('<think>a</think><action> \n</action>', '', False),
    ('<action>look</action><think>a</think>', 'look', False),
    ('<think>a<action>look</action></think>', 'look', False),
    ('</think>a<think><action>look</action>', 'look', False),
    ('<think>a</think></action>look<action>', '', False),
    ('<think>a</think><action>look</action><action>look</action>', 'look', False),
    ('<think>a</think><think>a</think><action>look</action>', 'look', False),
    ('<think>a</think><action>look', '', False),
    ('<action>look</action>', 'look', False),
    ('<think>a</think>look', '', False),
    ('<THINK>a</THINK><action>look</action>', 'look', False),
    ('<think>a</think><action>look\ud800</action>', 'look\ufffd', False),
    ('', '', False),
  ],
)
def test_strict_mode(response, action, valid):
  parsed = parse_strict(response, ADMISSIBLE.__contains__)
  assert (parsed.action, parsed.valid) == (action, valid)


def check(response):
  """What must hold of any string."""
  loose, strict = (
    parse_reference(response),
    parse_strict(response, ADMISSIBLE.__contains__),
  )
  for parsed in (loose, strict):
    parsed.action.encode()
    assert isinstance(parsed.valid, bool)
  if loose.valid:
    assert '<think>' in response and not re.search('[\u4e00-\u9fff]', response)
  exact = re.search(
    r'<think>.*</think>.*<action>\s*(look|go to desk 1)\s*</action>', response, re.S
  )
  tags = re.findall('</?think>|</?action>', response)
  assert strict.valid == bool(exact and len(tags) == 4)
  if strict.valid:
    assert strict.action == exact[1]


def test_ten_thousand_seeded_strings_never_raise():
  rng, begun = random.Random(0), time.process_time()
  for number in range(10_000):
    if number % 3:
      response = ''.join(rng.choices(PIECES, k=rng.randrange(16)))
    else:
      length = rng.randrange(60)
      response = ''.join(chr(rng.randrange(0x110000)) for _ in range(length))
    check(response)
    if number % 10 == 0:
      check(f'<think>{response}</think>{rng.choice(PIECES)}<action>look</action>')
  assert time.process_time() - begun < 10  # A millisecond each.


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=14))
def test_wild_strings_never_raise(pieces):
  check(''.join(pieces))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
  'piece', ['<think>', '</action>', '<action>', '<', ' ', '\ud800']
)
def test_a_megabyte_is_read_in_linear_time(piece):
  """A quadratic parser needs hours for one of these."""
  for tail in ('', '</action>', '<action>'):
    response = piece * (2**20 // len(piece)) + tail
    parse_reference(response).action.encode()
    parse_strict(response, ADMISSIBLE.__contains__).action.encode()
