"""Averages per question, and how the published way of averaging differs from them."""

import random

import pytest

from sdar_jax.envs.search_qa.datasets import DATA_SETS
from sdar_jax.evaluation.averages import average

BATCH = 512


def published(results):
  """Means of each data set per batch in file order, then the batches' mean."""
  batches = [results[i : i + BATCH] for i in range(0, len(results), BATCH)]
  means = {}
  for batch in batches:
    for name in {name for name, _ in batch}:
      scores = [score for other, score in batch if other == name]
      means.setdefault(name, []).append(sum(scores) / len(scores))
  return {name: sum(values) / len(values) for name, values in means.items()}


def evaluation(last):
  """The whole public test file: 30 of Bamboogle's first 124 right, and its last."""
  chance = random.Random(0)
  results = [
    (name, float(chance.random() < 0.4))
    for name, each in DATA_SETS.items()
    if name != 'bamboogle'
    for _ in range(each.test_size)
  ]
  bamboogle = [1.0] * 30 + [0.0] * 94 + [last]
  return results + [('bamboogle', score) for score in bamboogle]


@pytest.mark.parametrize('last', [0.0, 1.0])
def test_published_averages_give_one_question_half_the_weight(last):
  results = evaluation(last)
  assert len(results) == 51_713 and len(results) % BATCH == 1
  ours = average(results).by_kind['bamboogle']
  assert ours == (pytest.approx((30 + last) / 125), 125)
  theirs = published(results)['bamboogle']
  assert theirs == pytest.approx((30 / 124 + last) / 2)
  assert abs(theirs - ours.mean) > 0.11  # 12.1 % or 62.1 % instead of 24.0 or 24.8 %


def test_micro_and_macro():
  results = [('a', 1.0)] + [('b', 0.0)] * 2 + [('b', 1.0)]
  averages = average(results)
  assert averages.micro == pytest.approx(2 / 4)
  assert averages.macro == pytest.approx((1 + 1 / 3) / 2)
  assert averages.by_kind == {'a': (1.0, 1), 'b': (pytest.approx(1 / 3), 3)}
  assert average(reversed(results)) == averages
  assert average([('a', True), ('a', False)]).micro == 0.5


def test_no_question_is_an_error():
  with pytest.raises(ValueError, match='no task'):
    average([])
