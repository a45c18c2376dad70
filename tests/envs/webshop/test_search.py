"""The search engine against Lucene's recorded rankings, and against its formula."""

import collections
import math
import pickle
import random

import numpy as np
import pytest
import webshop_records as records

from sdar_jax.envs.webshop.search import (
  HITS,
  LongQueryError,
  SearchIndex,
  _kept_lengths,
)

WORDS = [f'w{letter}{letter}x' for letter in 'abcdefghijklmnopqrstuvwxyz']


def ranking(index, asins, terms):
  rows, scores = index.rank(terms)
  assert scores.dtype == np.float32
  return [asins[row] for row in rows], scores.tolist()


def test_recorded_rankings_and_scores_given_the_tokens():
  index, asins = records.shop().index, records.products().asins
  recorded = records.read('search')
  wrong = []
  for record in recorded:
    if 'error' in record:
      with pytest.raises(LongQueryError):
        index.rank(record['tokens'])
      continue
    scores = [float(np.float32(score)) for score in record['scores']]
    if ranking(index, asins, record['tokens']) != (record['asins'], scores):
      wrong.append(record['query'])
  assert len(recorded) == 751
  assert not wrong


def test_recorded_order_from_the_query_alone():
  index, asins = records.shop().index, records.products().asins
  recorded = [r for r in records.read('search') if 'error' not in r]
  found = [[asins[row] for row in index.search(r['query'])] for r in recorded]
  equal = sum(f == r['asins'] for f, r in zip(found, recorded))
  assert equal == len(recorded)


def lucene_length(length):
  """The length that one byte keeps, by bit arithmetic on one number."""
  if length < 24:
    return length
  rest = length - 24
  shift = max(rest.bit_length() - 4, 0)
  return 24 + (rest >> shift << shift)


def test_lengths_are_kept_as_one_byte_keeps_them():
  lengths = [*range(5000), 65_535, 65_536, 1_000_003]
  kept = _kept_lengths(np.array(lengths, np.int32))
  assert kept.tolist() == [lucene_length(length) for length in lengths]
  assert [lucene_length(n) for n in (39, 40, 41, 42, 56, 57)] == [
    39,
    40,
    40,
    42,
    56,
    56,
  ]


def slow_ranking(texts, asins, terms):
  """The formula of the module, one product and one float32 at a time."""
  f = np.float32
  lengths = [len(text) for text in texts]
  mean = f(sum(lengths) / sum(length > 0 for length in lengths))
  documents = sum(length > 0 for length in lengths)
  found = []
  for asin, text in zip(asins, texts):
    total = 0.0
    for term, count in collections.Counter(terms).items():
      said = sum(term in other for other in texts)
      if term not in text:
        continue
      weight = f(count) * f(math.log(1 + (documents - said + 0.5) / (said + 0.5)))
      length = f(lucene_length(len(text)))
      scale = f(1) / (f(0.9) * ((f(1) - f(0.4)) + f(0.4) * length / mean))
      total += float(weight - weight / (f(1) + f(text.count(term)) * scale))
    if total:
      found.append((-float(f(total)), asin))
  found.sort()
  return [asin for _, asin in found[:HITS]], [-score for score, _ in found[:HITS]]


@pytest.mark.parametrize('seed', range(3))
def test_ranks_by_the_formula(seed):
  rng = random.Random(seed)
  weights = [1 / (n + 1) for n in range(len(WORDS))]
  texts = [
    rng.choices(WORDS, weights, k=rng.choice((0, 1, 5, 40, 41, 90))) for _ in range(150)
  ]
  asins = [f'B{n:09d}' for n in rng.sample(range(10**9), len(texts))]
  index = SearchIndex.build((' '.join(text) for text in texts), asins)
  for _ in range(20):
    terms = rng.choices([*WORDS, 'absent'], k=rng.randint(0, 8))
    assert ranking(index, asins, terms) == slow_ranking(texts, asins, terms)


def test_equal_scores_are_ordered_by_asin():
  asins = ['B3', 'B1', 'B2', 'B0']
  index = SearchIndex.build(['lamp'] * 3 + ['lamp lamp'], asins)
  assert [asins[row] for row in index.search('lamp')] == ['B0', 'B1', 'B2', 'B3']
  many = [f'B{n:03d}' for n in reversed(range(200))]
  index = SearchIndex.build(['lamp'] * 200, many)
  assert [many[row] for row in index.search('lamp')] == sorted(many)[:HITS]


@pytest.mark.parametrize('sample', [1, 40, 100, 299, 300])
def test_samples_do_not_show(monkeypatch, sample):
  """Ranks as without one: with fewer and with more products than it has hits."""
  rng = random.Random(sample)
  texts = [' '.join(rng.choices(WORDS[:5], k=rng.randint(0, 4))) for _ in range(300)]
  asins = [f'B{n:09d}' for n in rng.sample(range(10**9), len(texts))]
  index = SearchIndex.build(texts, asins)
  queries = [WORDS[:1], WORDS[1:3], WORDS[:5], ['absent']]
  expected = [slow_ranking([t.split() for t in texts], asins, q) for q in queries]
  monkeypatch.setattr('sdar_jax.envs.webshop.search._SAMPLE', sample)
  assert [ranking(index, asins, query) for query in queries] == expected


def test_batches_do_not_show(monkeypatch):
  texts = [f'{word} lamp {word}' for word in WORDS] * 2 + ['']
  asins = [f'B{n:03d}' for n in range(len(texts))]
  whole = SearchIndex.build(texts, asins)
  monkeypatch.setattr('sdar_jax.envs.webshop.search._BATCH', 7)
  parts = SearchIndex.build(texts, asins)
  assert pickle.dumps(whole) == pickle.dumps(parts)


def test_unknown_and_empty_queries_find_nothing():
  index = SearchIndex.build(['red lamp', ''], ['B1', 'B2'])
  assert not len(index.search('')) and not len(index.search('zebra the'))
  assert SearchIndex.build([], []).search('lamp').tolist() == []


def test_long_queries_are_refused():
  index = SearchIndex.build(['lamp'], ['B1'])
  assert len(index.rank(['lamp', *map(str, range(1023))])[0]) == 1
  with pytest.raises(LongQueryError, match='1025 distinct terms; at most 1024'):
    index.rank(['lamp', *map(str, range(1024))])


def test_saved_and_pickled_indexes_rank_alike(tmp_path):
  texts = [' '.join(WORDS[n : n + 9]) for n in range(20)]
  asins = [f'B{n}' for n in range(20)]
  index = SearchIndex.build(texts, asins)
  index.save(tmp_path)
  mapped = SearchIndex.load(tmp_path)
  assert isinstance(mapped.rows, np.memmap)
  again = pickle.dumps(mapped)
  assert len(again) < 500, 'a mapped index pickles as its path'
  for other in (mapped, pickle.loads(again), pickle.loads(pickle.dumps(index))):
    assert ranking(other, asins, WORDS[:5]) == ranking(index, asins, WORDS[:5])
