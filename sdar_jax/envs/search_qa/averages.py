"""Averages over the seven data sets, every question counted once.

Published tables average each batch of the evaluation first and then the batches: where
a small data set straddles two batches, one question can weigh as much as all others.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Score(NamedTuple):
  """A mean and how many questions it is over."""

  mean: float
  questions: int


class Averages(NamedTuple):
  """What is reported of an evaluation.

  Attributes:
    by_data_set: the mean of each data set.
    micro: mean over all questions.
    macro: unweighted mean of the data sets' means (the papers' 'Avg.').
  """

  by_data_set: Mapping[str, Score]
  micro: float
  macro: float


def average(results: Iterable[tuple[str, float]]) -> Averages:
  """Averages scores per question.

  micro = sum_q s_q / Q;  macro = 1/D sum_d (1/Q_d sum_{q in d} s_q).

  Args:
    results: (data set, score in [0, 1]) of each question, in any order.

  Raises:
    ValueError: there is no question.
  """
  scores: dict[str, list[float]] = {}
  for name, score in results:
    scores.setdefault(name, []).append(float(score))
  if not scores:
    raise ValueError('averages: no question was answered')
  by_data_set = {
    name: Score(sum(values) / len(values), len(values))
    for name, values in sorted(scores.items())
  }
  return Averages(
    by_data_set,
    micro=sum(sum(v) for v in scores.values()) / sum(map(len, scores.values())),
    macro=sum(score.mean for score in by_data_set.values()) / len(by_data_set),
  )
