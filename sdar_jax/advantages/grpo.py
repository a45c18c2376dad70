"""GRPO's advantages: of rows over the other rows of their group.

Rows are turns. Padding rows (`row_mask` False) enter no statistic and get 0.
"""

from typing import NamedTuple

import numpy as np

from sdar_jax.advantages.checks import check_shapes, checked_scores
from sdar_jax.advantages.segments import centre, segments_of

EPS = 1e-6  # Added to a group's standard deviation.
STATISTICS_OVER = ('rows', 'trajectories')


class Groups(NamedTuple):
  """Statistics of every row's group, [B] each."""

  scores: np.ndarray  # Of the row itself, 0 for padding.
  segments: np.ndarray
  counted: np.ndarray  # Whether the row counts in the statistics.
  centred: np.ndarray
  std: np.ndarray
  count: np.ndarray


def groups_of(scores, group_ids, trajectory_ids, row_mask, statistics_over) -> Groups:
  """Takes the statistics of rows' groups; arguments of `group_relative`."""
  if statistics_over not in STATISTICS_OVER:
    raise ValueError(
      f'statistics_over={statistics_over!r}: expected one of {STATISTICS_OVER}'
    )
  check_shapes(scores.shape, group_ids=group_ids, trajectory_ids=trajectory_ids)
  scores = checked_scores(scores, row_mask)
  segments, first = segments_of(~row_mask, group_ids)
  counted = np.ones_like(row_mask)
  if statistics_over == 'trajectories':
    _, leader = segments_of(~row_mask, group_ids, trajectory_ids)
    counted = leader == np.arange(len(leader))
  return Groups(scores, segments, counted, *centre(scores, counted, segments, first))


def group_relative(
  scores: np.ndarray,
  group_ids: np.ndarray,
  trajectory_ids: np.ndarray,
  row_mask: np.ndarray,
  *,
  statistics_over: str = 'rows',
  divide_by_std: bool = True,
  mute_zero_std: bool = True,
) -> np.ndarray:
  """Centres and scales scores by their group's statistics (GRPO).

    Aᵢ = (sᵢ - μ_g) / (σ_g + 1e-6)

  with the group's mean μ and unbiased standard deviation σ. They run over all its rows
  (long trajectories weigh more), or over the first row of each of its trajectories. A
  group with a single item of statistics has μ = 0 and σ = 1. A group of equal scores
  gives exactly 0.

  Args:
    scores: [B] float, return units: the trajectory's return less the row's penalties.
    statistics_over: 'rows' (the reference's cross_steps=True) or 'trajectories'.
    divide_by_std: False leaves out the denominator, as Dr.GRPO does (which also
      aggregates with 'seq-mean-token-sum-norm').
    mute_zero_std: with 'trajectories', a group whose first rows score alike has
      σ = 0 although a later row may differ by a penalty. True gives that whole
      group 0; False divides by 1e-6 as the reference does, so that a penalty of 0.1
      becomes an advantage of -1e5.

  Returns:
    [B] in units of σ (or return units).

  Raises:
    ValueError: unknown `statistics_over`.

  Source: DeepSeekMath (arXiv 2402.03300) sec. 4.1.2; Dr.GRPO (arXiv 2503.20783)
    sec. 3; verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  groups = groups_of(scores, group_ids, trajectory_ids, row_mask, statistics_over)
  single = groups.count == 1
  advantages = np.where(single, groups.scores, groups.centred)
  if divide_by_std:
    advantages = advantages / (np.where(single, 1.0, groups.std) + EPS)
    if mute_zero_std:
      advantages = np.where(single | (groups.std > 0), advantages, 0.0)
  return np.where(row_mask, advantages, 0.0).astype(scores.dtype)


def uniform_credit(advantages: np.ndarray, response_mask: np.ndarray) -> np.ndarray:
  """Gives every response token its row's advantage.

  Source: DeepSeekMath (arXiv 2402.03300) sec. 4.1.2 (outcome supervision).
  """
  check_shapes(response_mask.shape[:1], advantages=advantages)
  return np.where(response_mask, advantages[:, None], 0)
