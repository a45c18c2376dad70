"""The parsers against the reference's records and against wild text."""

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

from sdar_jax.envs.search_qa import engine
from sdar_jax.envs.search_qa.parser import parse_reference, parse_strict

SAMPLE = Path(__file__).parents[2] / 'golden/search_parser.jsonl.xz'
PARSERS = (parse_reference, parse_strict)
TAGS = [f'<{end}{name}>' for name in ('think', 'search', 'answer') for end in ('', '/')]
PIECES = [
  *TAGS,
  *('<SEARCH>', '</Search>', '<ANSWER>', '</aNSWER>', '<\u017fearch>', '<an\u017fwer>'),
  *('who', 'Ada', ' ', '\n', '\u3000', '<', '>', '/', '\ud800', '\x00', '\u0130', 'ß'),
]


def by_regex(response):
  """The same rules in regular expressions, as one would first write them."""
  text = response
  for tag in ('</search>', '</answer>'):
    if tag in response:
      text = response[: response.index(tag) + len(tag)]
      break
  flags = re.DOTALL | re.IGNORECASE
  opened = [len(re.findall(f'<{n}>', response, flags)) for n in ('search', 'answer')]
  for name in ('search', 'answer'):
    found = re.search(f'<{name}>(.*?)</{name}>', text, flags)
    if found:
      inside = re.sub('[\ud800-\udfff]', '\ufffd', found[1].strip())
      return f'<{name}>{inside}</{name}>', sorted(opened) == [0, 1]
  return '', False


@pytest.mark.parametrize('where', ['sample', 'all'])
def test_reference_mode_agrees_with_the_records(where):
  path = SAMPLE
  if where == 'all':
    path = shared_path('golden/parsers/parsers.public.jsonl.xz')
  with lzma.open(path, 'rt', encoding='utf-8') as lines:
    records = [json.loads(line) for line in lines]
  records = [record for record in records if record['env'] == 'search']
  assert len(records) > 700 and sum(r['valid'] for r in records) > 300
  for record in records:
    expected = (record['action'], bool(record['valid']))
    assert parse_reference(record['response']) == engine.base.ParsedAction(*expected)


@pytest.mark.parametrize(
  'response, action, valid',
  [
    ('<search> who </search>', '<search>who</search>', True),
    ('<Search>who</SEARCH> tail', '<search>who</search>', True),
    ('<an\u017fwer>x</answer>', '<answer>x</answer>', True),
    ('<search></search>', '<search></search>', True),
    ('<answer>a</answer><search>b</search>', '<search>b</search>', False),
    ('<search>b</search><answer>a</answer>', '<search>b</search>', False),
    ('<search>a</search><search>b</search>', '<search>a</search>', False),
    ('<answer>a</answer><ANSWER>b</ANSWER>', '<answer>a</answer>', False),
    ('<answer>a</answer></search>', '<answer>a</answer>', True),
    ('<search>a</SEARCH><answer>b</answer>', '<search>a</search>', False),
    ('</search><search>a</search>', '', False),
    ('<search>a', '', False),
    ('<answer>\ud800</answer>', '<answer>\ufffd</answer>', True),
    ('', '', False),
  ],
)
def test_reference_mode_keeps_the_oddities(response, action, valid):
  parsed = parse_reference(response)
  assert (parsed.action, parsed.valid) == (action, valid)


@pytest.mark.parametrize(
  'response, action, valid',
  [
    ('<think>t</think>\n<search> who \n</search>', '<search>who</search>', True),
    ('so <think>t</think> then <answer>x</answer>.', '<answer>x</answer>', True),
    ('<search>who</search>', '<search>who</search>', False),
    ('<search>who</search><think>t</think>', '<search>who</search>', False),
    ('<think>t</think><search> </search>', '<search></search>', False),
    ('<think>t</think><answer></answer>', '<answer></answer>', False),
    ('<think>t</think><SEARCH>who</SEARCH>', '', False),
    (
      '<think>t</think><search>a</search><answer>b</answer>',
      '<search>a</search>',
      False,
    ),
    ('<think>t</think><answer>b</answer><search>', '<answer>b</answer>', False),
    ('<think>t</think><answer>b</answer></search>', '<answer>b</answer>', False),
    (
      '<think>t</think><search>a</search><search>b</search>',
      '<search>a</search>',
      False,
    ),
    ('<think><think>t</think><search>a</search>', '<search>a</search>', False),
    ('<think>t</think><search>a', '', False),
  ],
)
def test_strict_mode(response, action, valid):
  parsed = parse_strict(response)
  assert (parsed.action, parsed.valid) == (action, valid)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map(''.join))
def test_wild_text(response):
  parsed = parse_reference(response)
  assert (parsed.action, parsed.valid) == by_regex(response)
  for parse in PARSERS:
    parsed = parse(response)
    parsed.action.encode()
    kind, _ = engine.read_action(parsed.action)
    assert not parsed.valid or parsed.action
    if parse is parse_strict and parsed.valid:
      assert kind and parse_reference(response).valid


def test_ten_thousand_strings_of_any_kind():
  chance, begun = random.Random(3), time.process_time()
  for _ in range(10_000):
    pieces = chance.choices([*PIECES, chr(chance.randrange(0x110000))], k=12)
    for parse in PARSERS:
      parse(''.join(pieces)).action.encode()
  assert time.process_time() - begun < 10 * len(PARSERS)  # A millisecond each.


@pytest.mark.parametrize('piece', ['<search>', '<answer>', '</search', '<se', '<'])
def test_a_megabyte_is_parsed_in_linear_time(piece):
  # A quadratic parser takes hours here, and the suite's own time limit ends it.
  response = piece * (2**20 // len(piece))
  for parse in PARSERS:
    assert parse(response) == engine.base.ParsedAction('', valid=False)
