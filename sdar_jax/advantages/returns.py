"""Rewards over time: turns of an episode, tokens of a response.

A response's tokens may lie anywhere in a row: masked tokens are stepped over, not
discounted over.
"""

import numpy as np

from sdar_jax.advantages.checks import check_shapes, checked_scores
from sdar_jax.advantages.grpo import group_relative, uniform_credit
from sdar_jax.advantages.segments import in_turn, recurrence, segments_of

WHITEN_EPS = 1e-8  # Added to a batch's variance.


def whiten(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Scales unmasked tokens of the batch to mean 0 and deviation 1.

    (v - mean(v)) / √(var(v) + 1e-8)

  The variance is unbiased; a single token, or equal values, give exactly 0.

  Args:
    values: [B, T] float.
    mask: [B, T] bool.

  Returns:
    [B, T] in units of the batch's deviation.

  Source: Schulman et al. 2017 (arXiv 1707.06347), common practice;
    verl/utils/torch_functional.py of ZJU-REAL/SDAR@8b85c23.
  """
  check_shapes(mask.shape, values=values)
  # Relative to the first token, so that equal values give exactly 0.
  shifted = values - values.ravel()[np.argmax(mask.ravel())]
  count = np.sum(mask)
  mean = np.sum(np.where(mask, shifted, 0.0)) / np.maximum(count, 1)
  centred = np.where(mask, shifted - mean, 0.0)
  variance = np.sum(centred**2) / np.maximum(count - 1, 1)
  return (centred / np.sqrt(variance + WHITEN_EPS)).astype(values.dtype)


def step_returns(
  rewards: np.ndarray,
  trajectory_ids: np.ndarray,
  turn_ids: np.ndarray,
  row_mask: np.ndarray,
  *,
  gamma: float,
) -> np.ndarray:
  """Discounts rewards from each turn to the end of its episode.

    Gₖ = Σ_{l≥k} γˡ⁻ᵏ rₗ

  l counts the rows of the trajectory in the order of their turns. The reference
  subtracts the penalty of an invalid action from Gₖ afterwards, so that it does not
  reach earlier turns.

  Args:
    rewards: [B] float, return units, the environment's reward of the turn.
    gamma: discount per turn, in [0, 1].

  Returns:
    [B] return units.

  Source: GiGPO (arXiv 2505.10978) sec. 4.2; gigpo/core_gigpo.py of
    ZJU-REAL/SDAR@8b85c23 (gamma 0.95).
  """
  check_shapes(rewards.shape, trajectory_ids=trajectory_ids, turn_ids=turn_ids)
  rewards = checked_scores(rewards, row_mask)
  segments, _ = segments_of(~row_mask, trajectory_ids)
  order, goes_on = in_turn(segments, -turn_ids)  # From the last turn backwards.
  decays = gamma * goes_on.astype(rewards.dtype)
  returns = recurrence(rewards[order], decays)[np.argsort(order)]
  return np.where(row_mask, returns, 0).astype(rewards.dtype)


def _tokens_after(mask: np.ndarray) -> np.ndarray:
  """[B, T] number of unmasked tokens from each place on."""
  return np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]


def token_rewards(
  scores: np.ndarray,
  more: np.ndarray,
  response_mask: np.ndarray,
  row_mask: np.ndarray,
) -> np.ndarray:
  """Places the score on the last response token and adds other rewards.

    rₜ = s·[t = T] + mₜ

  Args:
    scores: [B] float, return units.
    more: [B, T] float, return units: m, as -beta times the KL between the policy before
      this step's updates and the initial one.

  Returns:
    [B, T] return units, 0 where masked. A row without any token pays nothing.

  Source: Ziegler et al. 2019 (arXiv 1909.08593) eq. 2; use_kl_in_reward of
    verl/trainer/ppo/ray_trainer.py of ZJU-REAL/SDAR@8b85c23.
  """
  check_shapes(response_mask.shape[:1], scores=scores)
  check_shapes(response_mask.shape, more=more)
  mask = response_mask & row_mask[:, None]
  last = mask & (_tokens_after(mask) == 1)
  placed = np.where(last, checked_scores(scores, row_mask)[:, None], 0.0)
  return (placed + np.where(mask, more, 0.0)).astype(scores.dtype)


def reinforce_plus_plus(
  scores: np.ndarray,
  response_mask: np.ndarray,
  row_mask: np.ndarray,
  *,
  gamma: float,
  token_rewards: np.ndarray | None = None,
) -> np.ndarray:
  """Whitens discounted returns of tokens over the batch (REINFORCE++).

    Gₜ = γⁿ⁽ᵗ⁾ s + Σ_{u≥t} γⁿ⁽ᵗ⁾⁻ⁿ⁽ᵘ⁾ mᵤ,  n(t) = response tokens after t
    A = (G - mean(G)) / √(var(G) + 1e-8)

  The variance is unbiased; a batch of one token gives 0.

  Args:
    scores: [B] float, return units, paid at the last response token.
    gamma: discount per token, in [0, 1].
    token_rewards: [B, T] float, return units: m, what else tokens earn; or None.

  Returns:
    [B, T] advantages in units of the batch's deviation.

  Source: Hu 2025 (arXiv 2501.03262) sec. 3; verl/trainer/ppo/core_algos.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  check_shapes(response_mask.shape[:1], scores=scores)
  mask = response_mask & row_mask[:, None]
  after = (_tokens_after(mask) - mask).astype(scores.dtype)
  returns = checked_scores(scores, row_mask)[:, None] * gamma**after
  if token_rewards is not None:
    more = np.where(mask, token_rewards, 0.0)
    sums, _ = gae(more, np.zeros_like(more), mask, gamma=gamma, gae_lambda=1.0)
    returns = (returns + sums).astype(scores.dtype)
  return whiten(returns, mask)


def reinforce_plus_plus_baseline(
  scores: np.ndarray,
  group_ids: np.ndarray,
  trajectory_ids: np.ndarray,
  response_mask: np.ndarray,
  row_mask: np.ndarray,
  *,
  statistics_over: str = 'rows',
) -> np.ndarray:
  """Whitens deviations from the group's mean over the batch's tokens.

    A = (d - mean(d)) / √(var(d) + 1e-8),  dᵢ = sᵢ - μ_g

  Mean and variance run over response tokens, so long responses weigh more. A group
  with a single item of statistics has μ = 0.

  Args:
    scores: [B] float, return units.
    statistics_over: rows that μ_g counts: 'rows' or 'trajectories' (first rows).

  Returns:
    [B, T] advantages in units of the batch's deviation.

  Raises:
    ValueError: unknown `statistics_over`.

  Source: Hu 2025 (arXiv 2501.03262), the baseline variant;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
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
  rewards: np.ndarray,
  values: np.ndarray,
  mask: np.ndarray,
  *,
  gamma: float,
  gae_lambda: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Estimates advantages over the tokens of a response (GAE).

    δₜ = rₜ + γVₜ₊₁ - Vₜ,  Aₜ = δₜ + γλAₜ₊₁,  Rₜ = Aₜ + Vₜ

  t + 1 is the next unmasked token; after the last one both V and A are 0. The
  reference whitens A afterwards (`whiten`) and takes γ = λ = 1.

  Args:
    rewards: [B, T] float, return units, as `token_rewards` places them.
    values: [B, T] float, return units: V, the critic's estimate before each token.
    mask: [B, T] bool.
    gamma: discount per token, in [0, 1].
    gae_lambda: λ in [0, 1].

  Returns:
    Advantages and the critic's targets, [B, T] return units.

  Source: Schulman et al. 2016 (arXiv 1506.02438) eq. 16;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  check_shapes(mask.shape, rewards=rewards, values=values)
  # Backwards in time, so that the recurrence's past is the response's future.
  rewards, values, mask = (array[:, ::-1] for array in (rewards, values, mask))
  rewards, values = np.where(mask, rewards, 0), np.where(mask, values, 0)
  stays = (~mask).astype(values.dtype)  # Masked tokens pass the carry through.
  following = np.pad(recurrence(values, stays)[:, :-1], ((0, 0), (1, 0)))
  deltas = np.where(mask, rewards + gamma * following - values, 0.0)
  carried = recurrence(deltas, np.where(mask, gamma * gae_lambda, stays))
  advantages = np.where(mask, carried, 0.0)[:, ::-1].astype(values.dtype)
  return advantages, advantages + values[:, ::-1]
