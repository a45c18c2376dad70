"""Exact match against the originals' records and against a second opinion."""

import json
import lzma
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path

from sdar_jax.envs.search_qa.answers import exact_match, normalize

SAMPLE = Path(__file__).parents[2] / 'golden/exact_match.jsonl.xz'


def last_answer(text, at_least=1):
  """What the last `<answer>...</answer>` of a text holds, stripped; case-sensitive.

  Args:
    text: a response, or a whole conversation.
    at_least: how many answers there must be; 2 where a prompt that shows one is part
      of the text.

  Returns:
    The answer, or None if there are fewer than `at_least`.
  """
  found, start = [], text.find('<answer>')
  while start >= 0 and (end := text.find('</answer>', start)) >= 0:
    found.append(text[start + len('<answer>') : end].strip())
    start = text.find('<answer>', end)
  return found[-1] if len(found) >= at_least else None


def sub_match(text, golden):
  """Whether a text contains any gold answer, both normalised."""
  listed, normal = [golden] if isinstance(golden, str) else golden, normalize(text)
  return any(normalize(gold) in normal for gold in listed)


def scored(text, golden, at_least):
  """What the originals' scoring functions give: exact, sub, exact with format 0.1."""
  answer = last_answer(text, at_least)
  if answer is None:
    return None, 0, 0, 0
  exact = exact_match(answer, golden)
  return answer, exact, sub_match(answer, golden), 1 if exact else 0.1


def disagreements(records):
  for record in records:
    text, golden = record['text'], record['gold']
    listed = [golden] if isinstance(golden, str) else golden
    ours = (normalize(text), [normalize(gold) for gold in listed])
    ours += (exact_match(text, golden), sub_match(text, golden))
    theirs = [record[k] for k in ('norm_text', 'norm_gold', 'em_text', 'subem_text')]
    for name, at_least in (('qa_em', 2), ('ref_utils', 1)):
      ours += scored(text, golden, at_least)
      keys = ('extracted', 'score_em', 'score_subem', 'score_em_format_0_1')
      theirs += [record[name][key] for key in keys]
    if list(ours) != theirs:
      yield record, ours


@pytest.mark.parametrize('where', ['sample', 'all'])
def test_every_record_agrees(where):
  path = SAMPLE
  if where == 'all':
    path = shared_path('golden/em/em.public.jsonl.xz')
  with lzma.open(path, 'rt', encoding='utf-8') as lines:
    records = [json.loads(line) for line in lines]
  assert len(records) >= 600 and sum(r['em_text'] for r in records) > 50
  assert sum(r['ref_utils']['score_em'] for r in records) > 50
  assert not list(disagreements(records))


@pytest.mark.parametrize(
  'text, golden, exact, sub',
  [
    ('The Beatles!', ['Beatles'], True, True),
    ('beatles', 'THE  Beatles', True, True),
    ('the Beatles of Liverpool', ['Beatles'], False, True),
    ('Beatles', ['the Beatles of Liverpool'], False, False),
    ('theatre', ['atre'], False, True),
    ('U.S.A.', ['usa'], True, True),
    ('“usa”', ['usa'], False, True),  # only ASCII punctuation is dropped
    ('anything', [], False, False),
    ('an', ['the'], True, True),
    ('anything', ['the'], False, True),
    ('1,000', ['1000'], True, True),
    ('x', ['y', 'x'], True, True),
  ],
)
def test_matches(text, golden, exact, sub):
  assert (exact_match(text, golden), sub_match(text, golden)) == (exact, sub)


@settings(deadline=None)
@given(st.text(alphabet='aAnthe .,\u00a0\u2014É-\n'))
def test_normalisation_done_word_by_word(text):
  kept = ''.join(c for c in text.lower() if c not in string.punctuation)
  words, word = [], ''
  for character in [*kept, ' ']:
    if character.isalnum():
      word += character
      continue
    words += [word, character]
    word = ''
  bare = ''.join(' ' if w in ('a', 'an', 'the') else w for w in words)
  assert normalize(text) == ' '.join(bare.split())


def test_the_last_answer_is_found_in_linear_time():
  assert last_answer('<answer>' * 200_000) is None
  assert last_answer('<answer>x</answer>' * 50_000) == 'x'
  assert last_answer('<answer>a</answer> <answer> b\n</answer>', 2) == 'b'
  assert last_answer('<answer>a</answer> <answer> b', 2) is None
  assert last_answer('<ANSWER>a</ANSWER>') is None
