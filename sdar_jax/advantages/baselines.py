"""Advantages of rows over their group by other rules than GRPO's.

Rows are turns. Padding rows (`row_mask` False) enter no statistic and get 0.
"""

import numpy as np

from sdar_jax.advantages.checks import check_shapes, checked_scores
from sdar_jax.advantages.grpo import EPS, group_relative, groups_of
from sdar_jax.advantages.segments import centre, segments_of


def rloo(
  scores: np.ndarray,
  group_ids: np.ndarray,
  trajectory_ids: np.ndarray,
  row_mask: np.ndarray,
  *,
  statistics_over: str = 'rows',
) -> np.ndarray:
  """Subtracts the mean of a group's other members (RLOO).

    Aᵢ = n/(n-1) · (sᵢ - μ_g), or sᵢ where n = 1

  Args and errors are those of `group_relative`; n and μ_g count what
  `statistics_over` says.

  Returns:
    [B] return units.

  Source: Ahmadian et al. 2024 (arXiv 2402.14740) eq. 8;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  groups = groups_of(scores, group_ids, trajectory_ids, row_mask, statistics_over)
  scale = groups.count / np.maximum(groups.count - 1, 1)
  advantages = np.where(groups.count == 1, groups.scores, groups.centred * scale)
  return np.where(row_mask, advantages, 0.0).astype(scores.dtype)


def pass_at_k(
  scores: np.ndarray,
  group_ids: np.ndarray,
  trajectory_ids: np.ndarray,
  row_mask: np.ndarray,
  *,
  statistics_over: str = 'rows',
  divide_by_std: bool = True,
) -> np.ndarray:
  """Pays a group's best member its lead over the second best.

    A_best = (s₍₁₎ - s₍₂₎) / (σ_g + 1e-6), and 0 for all others

  A group without a second item, or whose two best are equal, gets exactly 0. Over
  'rows' (the reference) the best and the second best may be two turns of one
  successful episode, which cancel; over 'trajectories' every row of the best
  trajectory gets the lead.

  Args and errors are those of `group_relative`.

  Returns:
    [B] in units of σ (or return units).

  Source: verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23
    (compute_grpo_passk_outcome_advantage), after arXiv 2503.19595.
  """
  groups = groups_of(scores, group_ids, trajectory_ids, row_mask, statistics_over)
  # Each segment's rows, its best counted row first; ties go to the earlier row.
  order = np.lexsort((-groups.scores, ~groups.counted, groups.segments))
  start = np.searchsorted(groups.segments[order], groups.segments)
  best, second = order[start], order[np.minimum(start + 1, len(order) - 1)]
  lead = groups.scores[best] - groups.scores[second]
  if divide_by_std:
    lead = lead / (groups.std + EPS)
  if statistics_over == 'rows':
    wins = best == np.arange(len(best))
  else:
    wins = trajectory_ids == trajectory_ids[best]
  wins = wins & (groups.count > 1) & row_mask
  return np.where(wins, lead, 0.0).astype(scores.dtype)


def gigpo(
  scores: np.ndarray,
  step_returns: np.ndarray,
  group_ids: np.ndarray,
  trajectory_ids: np.ndarray,
  anchor_ids: np.ndarray,
  row_mask: np.ndarray,
  *,
  step_weight: float = 1.0,
  statistics_over: str = 'rows',
  divide_by_std: bool = True,
) -> np.ndarray:
  """Adds advantages among equal states to those among episodes (GiGPO).

    Aᵢ = A_episode + w · (Gᵢ - μ_{g,a}) / (σ_{g,a} + 1e-6)

  The second term compares the rows of one group with one anchor observation; a row
  alone with its anchor gets 0 from it.

  Args:
    scores: as in `group_relative`, like all that is not listed here.
    step_returns: [B] float, return units: G, discounted rewards from this turn on.
    anchor_ids: [B] int, equal within a group iff the observations are.
    step_weight: w.
    statistics_over: of the first term.
    divide_by_std: of both terms: True is the paper's 'mean_std_norm', False its
      'mean_norm'.

  Source: GiGPO (arXiv 2505.10978) eq. 3-8; gigpo/core_gigpo.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  check_shapes(scores.shape, step_returns=step_returns, anchor_ids=anchor_ids)
  episode = group_relative(
    scores,
    group_ids,
    trajectory_ids,
    row_mask,
    statistics_over=statistics_over,
    divide_by_std=divide_by_std,
  )
  step = step_relative(
    step_returns, group_ids, anchor_ids, row_mask, divide_by_std=divide_by_std
  )
  return (episode + step_weight * step).astype(scores.dtype)


def step_relative(
  step_returns: np.ndarray,
  group_ids: np.ndarray,
  anchor_ids: np.ndarray,
  row_mask: np.ndarray,
  *,
  divide_by_std: bool,
) -> np.ndarray:
  """Compares a group's rows of equal states; the second term of `gigpo`.

  Returns:
    [B] float; 0 for a row alone with its state.
  """
  returns = checked_scores(step_returns, row_mask)
  segments, first = segments_of(~row_mask, group_ids, anchor_ids)
  step, std, _ = centre(returns, np.ones_like(row_mask), segments, first)
  if divide_by_std:
    step = step / (std + EPS)
  return np.where(row_mask, step, 0.0)
