"""Advantages: what a sampled response earned beyond its peers.

Rows are turns. Every function takes numpy or JAX arrays and answers in kind: on the
host nothing is compiled however many rows there are, on the device everything jits.
Padding rows (`row_mask` False) enter no statistic and get 0. Sums over groups are
sums over sorted segments: memory is O(rows).
"""

import chex

from sdar_jax.advantages.segments import centre, paid, segments_of
from sdar_jax.losses.masked import Array, namespace

EPS = 1e-6  # Added to a group's standard deviation.
STATISTICS_OVER = ('rows', 'trajectories')
LOG_WEIGHT_LIMIT = 20.0


def _counted(xp, group_ids, trajectory_ids, row_mask, statistics_over):
  """(segment, its first row, weight in its statistics) of every row."""
  if statistics_over not in STATISTICS_OVER:
    raise ValueError(
      f'statistics_over={statistics_over!r}: expected one of {STATISTICS_OVER}'
    )
  segments, first = segments_of(xp, ~row_mask, group_ids)
  if statistics_over == 'rows':
    return segments, first, xp.ones_like(row_mask)
  _, leader = segments_of(xp, ~row_mask, group_ids, trajectory_ids)
  return segments, first, leader == xp.arange(leader.shape[0])


def _group_statistics(scores, group_ids, trajectory_ids, row_mask, statistics_over):
  """(namespace, masked scores, centred scores, std, count) of every row's group."""
  chex.assert_rank([scores, group_ids, trajectory_ids, row_mask], 1)
  chex.assert_equal_shape([scores, group_ids, trajectory_ids, row_mask])
  xp = namespace(scores, group_ids, trajectory_ids, row_mask)
  scores = paid(xp, scores, row_mask)
  segments, first, counted = _counted(
    xp, group_ids, trajectory_ids, row_mask, statistics_over
  )
  return xp, scores, *centre(xp, scores, counted.astype(scores.dtype), segments, first)


def group_relative(
  scores: Array,
  group_ids: Array,
  trajectory_ids: Array,
  row_mask: Array,
  *,
  statistics_over: str = 'rows',
  divide_by_std: bool = True,
  mute_zero_std: bool = True,
) -> Array:
  r"""GRPO's advantages.

  \[ A_i = \frac{s_i - \mu_g}{\sigma_g + 10^{-6}}, \quad
     \mu_g, \sigma_g = \text{mean and unbiased std over the group} \]

  The group's statistics run over all its rows (long trajectories weigh more), or over
  the first row of each of its trajectories. A group with a single item of statistics
  has mu = 0 and sigma = 1. A group of equal scores gives exactly 0.

  Args:
    scores: [B] float, return units: the trajectory's return less the row's penalties.
    group_ids: [B] int.
    trajectory_ids: [B] int, unique within a group at least.
    row_mask: [B] bool, False for padding rows.
    statistics_over: 'rows' (the reference's cross_steps=True) or 'trajectories'.
    divide_by_std: False leaves out the denominator, as Dr.GRPO does (which also
      aggregates with 'seq-mean-token-sum-norm').
    mute_zero_std: with 'trajectories', a group whose first rows score alike has
      sigma = 0 although a later row may differ by a penalty. True gives that whole
      group 0; False divides by 1e-6 as the reference does, so that a penalty of 0.1
      becomes an advantage of -1e5.

  Returns:
    [B] advantages in units of sigma (or return units), 0 for padding rows.

  Raises:
    ValueError: unknown `statistics_over`; on the host, a score that is not finite.

  Source: DeepSeekMath (arXiv 2402.03300) sec. 4.1.2; Dr.GRPO (arXiv 2503.20783)
    sec. 3; verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  xp, masked_scores, centred, std, count = _group_statistics(
    scores, group_ids, trajectory_ids, row_mask, statistics_over
  )
  single = count == 1
  advantages = xp.where(single, masked_scores, centred)
  if divide_by_std:
    advantages = advantages / (xp.where(single, 1.0, std) + EPS)
    if mute_zero_std:
      advantages = xp.where(single | (std > 0), advantages, 0.0)
  return xp.where(row_mask, advantages, 0.0).astype(scores.dtype)


def rloo(
  scores: Array,
  group_ids: Array,
  trajectory_ids: Array,
  row_mask: Array,
  *,
  statistics_over: str = 'rows',
) -> Array:
  r"""Leave-one-out advantages.

  \[ A_i = \frac{n}{n-1}(s_i - \mu_g), \qquad A_i = s_i \text{ if } n = 1 \]

  Args:
    scores: [B] float, return units.
    group_ids: [B] int.
    trajectory_ids: [B] int, unique within a group at least.
    row_mask: [B] bool, False for padding rows.
    statistics_over: what n and mu_g count: 'rows' or 'trajectories' (first rows).

  Returns:
    [B] advantages in return units, 0 for padding rows.

  Raises:
    ValueError: unknown `statistics_over`; on the host, a score that is not finite.

  Source: Ahmadian et al. 2024 (arXiv 2402.14740) eq. 8;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  xp, masked_scores, centred, _, count = _group_statistics(
    scores, group_ids, trajectory_ids, row_mask, statistics_over
  )
  scale = count / xp.maximum(count - 1, 1)
  advantages = xp.where(count == 1, masked_scores, centred * scale)
  return xp.where(row_mask, advantages, 0.0).astype(scores.dtype)


def pass_at_k(
  scores: Array,
  group_ids: Array,
  trajectory_ids: Array,
  row_mask: Array,
  *,
  statistics_over: str = 'rows',
  divide_by_std: bool = True,
) -> Array:
  r"""GRPO for pass@k: the best member of a group gets its lead over the second best.

  \[ A_{best} = \frac{s_{(1)} - s_{(2)}}{\sigma_g + 10^{-6}}, \qquad
     A_i = 0 \text{ for all others} \]

  A group without a second item, or whose two best are equal, gets exactly 0. Over
  'rows' the best and the second best may be two turns of one successful episode,
  which cancel; over 'trajectories' every row of the best trajectory gets the lead.

  Args:
    scores: [B] float, return units.
    group_ids: [B] int.
    trajectory_ids: [B] int, unique within a group at least.
    row_mask: [B] bool, False for padding rows.
    statistics_over: what competes and what sigma_g counts: 'rows' (the reference) or
      'trajectories' (first rows).
    divide_by_std: False leaves out the denominator.

  Returns:
    [B] advantages in units of sigma (or return units), 0 for padding rows.

  Raises:
    ValueError: unknown `statistics_over`; on the host, a score that is not finite.

  Source: verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23
    (compute_grpo_passk_outcome_advantage), after arXiv 2503.19595.
  """
  xp, masked_scores, _, std, count = _group_statistics(
    scores, group_ids, trajectory_ids, row_mask, statistics_over
  )
  segments, _, counted = _counted(
    xp, group_ids, trajectory_ids, row_mask, statistics_over
  )
  order = xp.lexsort((-masked_scores, ~counted, segments))
  start = xp.searchsorted(segments[order], segments)
  best, second = order[start], order[xp.minimum(start + 1, order.shape[0] - 1)]
  lead = masked_scores[best] - masked_scores[second]
  if statistics_over == 'rows':
    wins = best == xp.arange(best.shape[0])
  else:
    wins = trajectory_ids == trajectory_ids[best]
  if divide_by_std:
    lead = lead / (std + EPS)
  wins = wins & (count > 1) & row_mask
  return xp.where(wins, lead, 0.0).astype(scores.dtype)


def gigpo(
  scores: Array,
  step_returns: Array,
  group_ids: Array,
  trajectory_ids: Array,
  anchor_ids: Array,
  row_mask: Array,
  *,
  step_weight: float = 1.0,
  statistics_over: str = 'rows',
  divide_by_std: bool = True,
) -> Array:
  r"""GiGPO: advantages among episodes plus advantages among equal states.

  \[ A = A^{episode} + w\,\frac{G_i - \mu_{g,a}}{\sigma_{g,a} + 10^{-6}} \]

  The second term compares the rows of one group that saw the same anchor
  observation; a row alone with its anchor gets 0 from it.

  Args:
    scores: [B] float, return units, as in `group_relative`.
    step_returns: [B] float, return units: discounted rewards from this turn on.
    group_ids: [B] int.
    trajectory_ids: [B] int, unique within a group at least.
    anchor_ids: [B] int, equal within a group iff the observations are.
    row_mask: [B] bool, False for padding rows.
    step_weight: w.
    statistics_over: of the first term, as in `group_relative`.
    divide_by_std: True is the paper's 'mean_std_norm', False its 'mean_norm'; both
      terms follow it.

  Returns:
    [B] advantages, 0 for padding rows.

  Source: GiGPO (arXiv 2505.10978) eq. 3-8; gigpo/core_gigpo.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_equal_shape([scores, step_returns, anchor_ids])
  episode = group_relative(
    scores,
    group_ids,
    trajectory_ids,
    row_mask,
    statistics_over=statistics_over,
    divide_by_std=divide_by_std,
  )
  xp = namespace(scores, step_returns, group_ids, anchor_ids, row_mask)
  returns = paid(xp, step_returns, row_mask)
  segments, first = segments_of(xp, ~row_mask, group_ids, anchor_ids)
  step, std, _ = centre(xp, returns, xp.ones_like(returns), segments, first)
  if divide_by_std:
    step = step / (std + EPS)
  step = xp.where(row_mask, step, 0.0)
  return (episode + step_weight * step).astype(scores.dtype)


def uniform_credit(advantages: Array, response_mask: Array) -> Array:
  """Every response token of a row gets the row's advantage.

  Args:
    advantages: [B] float.
    response_mask: [B, T] bool.

  Returns:
    [B, T] advantages, 0 where masked.

  Source: DeepSeekMath (arXiv 2402.03300) sec. 4.1.2 (outcome supervision).
  """
  chex.assert_rank([advantages, response_mask], [1, 2])
  xp = namespace(advantages, response_mask)
  return xp.where(response_mask, advantages[:, None], xp.zeros_like(advantages[:1]))


def rlsd_credit(
  advantages: Array,
  gap: Array,
  response_mask: Array,
  *,
  rlsd_lambda: float,
  rlsd_clip: float,
) -> Array:
  r"""RLSD: the teacher redistributes a row's advantage over its tokens.

  \[ w_t = \mathrm{clip}(e^{\mathrm{sign}(A)\Delta_t}, 1-\epsilon, 1+\epsilon), \quad
     \hat A_t = A\,[(1-\lambda) + \lambda w_t] \]

  Args:
    advantages: [B] float.
    gap: [B, T] float, nats: teacher_logprobs - old_logprobs.
    response_mask: [B, T] bool.
    rlsd_lambda: lambda in [0, 1]; 0 is `uniform_credit`.
    rlsd_clip: epsilon in [0, 1).

  Returns:
    [B, T] advantages, 0 where masked.

  Source: RLSD (arXiv 2604.03128); verl/trainer/ppo/rlsd_utils.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([advantages, response_mask], [1, 2])
  chex.assert_equal_shape([gap, response_mask])
  xp = namespace(advantages, gap, response_mask)
  gap = xp.where(response_mask, gap, xp.zeros_like(gap))
  signed = xp.clip(
    xp.sign(advantages)[:, None] * gap, -LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT
  )
  weights = xp.clip(xp.exp(signed), 1.0 - rlsd_clip, 1.0 + rlsd_clip)
  shaped = advantages[:, None] * ((1.0 - rlsd_lambda) + rlsd_lambda * weights)
  return xp.where(response_mask, shaped, xp.zeros_like(shaped))
