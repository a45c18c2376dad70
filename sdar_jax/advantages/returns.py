"""Rewards over time: turns of an episode, tokens of a response, and their baselines.

Like `advantages`, every function but the value loss takes numpy or JAX arrays and
answers in kind. A response's tokens may lie anywhere in a row: masked tokens are
stepped over, not discounted over.
"""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.advantages.baselines import group_relative, uniform_credit
from sdar_jax.advantages.segments import paid, recurrence, segments_of
from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array, namespace

WHITEN_EPS = 1e-8  # Added to a batch's variance.


def whiten(values: Array, mask: Array) -> Array:
  r"""Zero mean and unit deviation over the unmasked tokens of the batch.

  \[ (v - \bar v) / \sqrt{\mathrm{var}(v) + 10^{-8}} \]

  The variance is unbiased; a single token, or equal values, give exactly 0.

  Args:
    values: [B, T] float.
    mask: [B, T] bool.

  Returns:
    [B, T] in units of the batch's deviation, 0 where masked.

  Source: Schulman et al. 2017 (arXiv 1707.06347), common practice;
    verl/utils/torch_functional.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_equal_shape([values, mask])
  xp = namespace(values, mask)
  # Relative to the first token, so that equal values give exactly 0.
  shifted = values - values.ravel()[xp.argmax(mask.ravel())]
  count = xp.sum(mask)
  mean = xp.sum(xp.where(mask, shifted, 0.0)) / xp.maximum(count, 1)
  centred = xp.where(mask, shifted - mean, 0.0)
  variance = xp.sum(centred**2) / xp.maximum(count - 1, 1)
  return (centred / xp.sqrt(variance + WHITEN_EPS)).astype(values.dtype)


def step_returns(
  rewards: Array,
  trajectory_ids: Array,
  turn_ids: Array,
  row_mask: Array,
  *,
  gamma: float,
) -> Array:
  r"""Discounted reward from each turn to the end of its episode.

  \[ G_k = \sum_{l \ge k} \gamma^{l-k} r_l \]

  l counts the rows of the trajectory in the order of their turns. The reference
  subtracts the penalty of an invalid action from G_k afterwards, so that it does not
  reach earlier turns.

  Args:
    rewards: [B] float, return units, the environment's reward of the turn.
    trajectory_ids: [B] int, unique in the batch.
    turn_ids: [B] int, unique in a trajectory.
    row_mask: [B] bool, False for padding rows.
    gamma: discount per turn, in [0, 1].

  Returns:
    [B] return units, 0 for padding rows.

  Raises:
    ValueError: on the host, a reward that is not finite.

  Source: GiGPO (arXiv 2505.10978) sec. 4.2; gigpo/core_gigpo.py of
    ZJU-REAL/SDAR@8b85c23 (gamma 0.95).
  """
  chex.assert_rank([rewards, trajectory_ids, turn_ids, row_mask], 1)
  chex.assert_equal_shape([rewards, trajectory_ids, turn_ids, row_mask])
  xp = namespace(rewards, trajectory_ids, turn_ids, row_mask)
  rewards = paid(xp, rewards, row_mask)
  segments, _ = segments_of(xp, ~row_mask, trajectory_ids)
  order = xp.lexsort((-turn_ids, segments))  # From an episode's last turn backwards.
  ordered = segments[order]
  same = xp.concatenate([xp.zeros(1, bool), ordered[1:] == ordered[:-1]])
  decays = gamma * same.astype(rewards.dtype)
  returns = recurrence(xp, rewards[order], decays)[xp.argsort(order)]
  return xp.where(row_mask, returns, xp.zeros_like(returns)).astype(rewards.dtype)


def token_rewards(
  scores: Array, more: Array, response_mask: Array, row_mask: Array
) -> Array:
  r"""The score on the last response token, and what else tokens earn.

  \[ r_t = s\,[t = T] + m_t \]

  Args:
    scores: [B] float, return units.
    more: [B, T] float, return units: as -beta times the KL between the policy before
      this step's updates and the initial one.
    response_mask: [B, T] bool.
    row_mask: [B] bool, False for padding rows.

  Returns:
    [B, T] return units, 0 where masked. A row without any token pays nothing.

  Raises:
    ValueError: on the host, a score that is not finite.

  Source: Ziegler et al. 2019 (arXiv 1909.08593) eq. 2; use_kl_in_reward of
    verl/trainer/ppo/ray_trainer.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([scores, more, response_mask, row_mask], [1, 2, 2, 1])
  xp = namespace(scores, more, response_mask, row_mask)
  mask = response_mask & row_mask[:, None]
  after = xp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
  last = mask & (after == 1)
  placed = xp.where(last, paid(xp, scores, row_mask)[:, None], 0.0)
  return (placed + xp.where(mask, more, 0.0)).astype(scores.dtype)


def reinforce_plus_plus(
  scores: Array,
  response_mask: Array,
  row_mask: Array,
  *,
  gamma: float,
  token_rewards: Array | None = None,
) -> Array:
  r"""REINFORCE++: discounted token returns, whitened over the batch's tokens.

  \[ G_{it} = \gamma^{n_i(t)} s_i + \sum_{u \ge t} \gamma^{n_i(t) - n_i(u)} m_{iu},
     \quad n_i(t) = \text{response tokens after } t,
     \quad A = (G - \bar G) / \sqrt{\mathrm{var}(G) + 10^{-8}} \]

  The variance is unbiased; a batch of one token gives 0.

  Args:
    scores: [B] float, return units, paid at the last response token.
    response_mask: [B, T] bool.
    row_mask: [B] bool, False for padding rows.
    gamma: discount per token, in [0, 1].
    token_rewards: [B, T] float, return units: m, what else tokens earn; or None.

  Returns:
    [B, T] advantages in units of the batch's deviation, 0 where masked.

  Source: Hu 2025 (arXiv 2501.03262) sec. 3; verl/trainer/ppo/core_algos.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([scores, response_mask, row_mask], [1, 2, 1])
  xp = namespace(scores, response_mask, row_mask)
  mask = response_mask & row_mask[:, None]
  after = xp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] - mask
  returns = paid(xp, scores, row_mask)[:, None] * gamma ** after.astype(scores.dtype)
  if token_rewards is not None:
    more = xp.where(mask, token_rewards, 0.0)
    sums, _ = gae(more, xp.zeros_like(more), mask, gamma=gamma, gae_lambda=1.0)
    returns = (returns + sums).astype(scores.dtype)
  return whiten(returns, mask)


def reinforce_plus_plus_baseline(
  scores: Array,
  group_ids: Array,
  trajectory_ids: Array,
  response_mask: Array,
  row_mask: Array,
  *,
  statistics_over: str = 'rows',
) -> Array:
  r"""REINFORCE++ with the group's mean as baseline, whitened over the batch's tokens.

  \[ A_{it} = (d_i - \bar d) / \sqrt{\mathrm{var}(d) + 10^{-8}}, \qquad
     d_i = s_i - \mu_g \]

  Mean and variance run over response tokens, so long responses weigh more. A group
  with a single item of statistics has mu = 0.

  Args:
    scores: [B] float, return units.
    group_ids: [B] int.
    trajectory_ids: [B] int, unique within a group at least.
    response_mask: [B, T] bool.
    row_mask: [B] bool, False for padding rows.
    statistics_over: what mu_g counts: 'rows' or 'trajectories' (first rows).

  Returns:
    [B, T] advantages in units of the batch's deviation, 0 where masked.

  Raises:
    ValueError: unknown `statistics_over`; on the host, a score that is not finite.

  Source: Hu 2025 (arXiv 2501.03262), the baseline variant;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([scores, response_mask, row_mask], [1, 2, 1])
  centred = group_relative(
    scores,
    group_ids,
    trajectory_ids,
    row_mask,
    statistics_over=statistics_over,
    divide_by_std=False,
  )
  mask = response_mask & row_mask[:, None]
  return whiten(uniform_credit(centred, mask), mask)


def gae(
  rewards: Array, values: Array, mask: Array, *, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
  r"""Generalised advantage estimation over the tokens of a response.

  \[ \delta_t = r_t + \gamma V_{t+1} - V_t, \quad
     A_t = \delta_t + \gamma\lambda A_{t+1}, \quad R_t = A_t + V_t \]

  t + 1 is the next unmasked token; after the last one both V and A are 0. The
  reference whitens A afterwards (`whiten`) and takes gamma = lambda = 1.

  Args:
    rewards: [B, T] float, return units, as `token_rewards` places them.
    values: [B, T] float, return units: the critic's estimate before each token.
    mask: [B, T] bool.
    gamma: discount per token, in [0, 1].
    gae_lambda: lambda, in [0, 1].

  Returns:
    Advantages and the critic's targets, [B, T] return units, 0 where masked.

  Source: Schulman et al. 2016 (arXiv 1506.02438) eq. 16;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([rewards, values, mask], 2)
  chex.assert_equal_shape([rewards, values, mask])
  xp = namespace(rewards, values, mask)
  # Backwards in time, so that the recurrence's past is the response's future.
  rewards, values, mask = (array[:, ::-1] for array in (rewards, values, mask))
  rewards = xp.where(mask, rewards, xp.zeros_like(rewards))
  values = xp.where(mask, values, xp.zeros_like(values))
  stays = (~mask).astype(values.dtype)  # A masked token hands on what it was given.
  held = recurrence(xp, values, stays)
  following = xp.pad(held[:, :-1], ((0, 0), (1, 0)))
  deltas = xp.where(mask, rewards + gamma * following - values, 0.0)
  carried = recurrence(xp, deltas, xp.where(mask, gamma * gae_lambda, stays))
  advantages = xp.where(mask, carried, 0.0)[:, ::-1].astype(values.dtype)
  return advantages, advantages + values[:, ::-1]


def value_loss(
  values: Array, old_values: Array, targets: Array, mask: Array, *, value_clip: float
) -> jax.Array:
  r"""PPO's clipped value loss, per token.

  \[ \tfrac12 \max\big((V - R)^2,\ (V_{old} +
     \mathrm{clip}(V - V_{old}, -\epsilon, \epsilon) - R)^2\big) \]

  Args:
    values: [B, T] float, return units; the only input with a gradient.
    old_values: [B, T] float, return units, before this step's updates.
    targets: [B, T] float, return units: R of `gae`.
    mask: [B, T] bool.
    value_clip: epsilon, return units (0.5 in the reference).

  Returns:
    [B, T] squared return units, to be minimised; 0 where masked.

  Source: Schulman et al. 2017 (arXiv 1707.06347), its public baselines;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([values, old_values, targets], 2)
  values, old_values, targets = masked.fill(mask, values, old_values, targets)
  old_values, targets = jax.lax.stop_gradient((old_values, targets))
  near = jnp.clip(values, old_values - value_clip, old_values + value_clip)
  plain, clipped = jnp.square(values - targets), jnp.square(near - targets)
  return 0.5 * jnp.where(clipped > plain, clipped, plain)
