"""Averages over kinds of tasks (or data sets), every task counted once.

Published tables average each batch of the evaluation first and then the batches: where
a small data set straddles two batches, one question can weigh as much as all others.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Score(NamedTuple):
  """A mean and how many tasks it is over."""

  mean: float
  tasks: int


class Averages(NamedTuple):
  """Averages of an evaluation: by kind, micro and macro.

  Attributes:
    by_kind: the mean of each kind.
    micro: mean over all tasks.
    macro: unweighted mean of the kinds' means: over data sets, the papers' 'Avg.'.
  """

  by_kind: Mapping[str, Score]
  micro: float
  macro: float


def average(results: Iterable[tuple[str, float]]) -> Averages:
  """Averages scores per task.

  micro = sum_q s_q / Q;  macro = 1/D sum_d (1/Q_d sum_{q in d} s_q).

  Args:
    results: (kind, score in [0, 1]) of each task, in any order.

  Raises:
    ValueError: there is no task.
  """
  scores: dict[str, list[float]] = {}
  for name, score in results:
    scores.setdefault(name, []).append(float(score))
  if not scores:
    raise ValueError('averages: no task was played')
  by_kind = {
    name: Score(sum(values) / len(values), len(values))
    for name, values in sorted(scores.items())
  }
  return Averages(
    by_kind,
    micro=sum(sum(v) for v in scores.values()) / sum(map(len, scores.values())),
    macro=sum(score.mean for score in by_kind.values()) / len(by_kind),
  )
