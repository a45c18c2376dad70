"""Rewards and gates from the teacher's log-probabilities (ADRS).

They run before a step is cut into minibatches.
"""

import numpy as np

from sdar_jax.advantages.checks import check_shapes, checked_scores
from sdar_jax.advantages.segments import segment_sum, segments_of

EPS = 1e-8


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1.0 + np.tanh(0.5 * x))  # Cannot overflow.


def _batch_std(values: np.ndarray, mask: np.ndarray) -> float:
  """Unbiased deviation over unmasked tokens; 1 where fewer than two are."""
  count = np.sum(mask)
  mean = np.sum(np.where(mask, values, 0)) / np.maximum(count, 1)
  squares = np.sum(np.where(mask, (values - mean) ** 2, 0))
  return np.sqrt(squares / (count - 1)) + EPS if count > 1 else 1.0


def teacher_rewards(teacher_logprobs: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Standardises the teacher's log-probabilities over the batch's tokens.

    rₜ = (log π_T(yₜ) - mean(log π_T)) / (std(log π_T) + 1e-8)

  The deviation is unbiased. (The paper's step subtracts each row's mean, which leaves
  nothing of a row's sum, and so nothing for estimators that read its score.)

  Args:
    teacher_logprobs: [B, T] float, nats.
    mask: [B, T] bool.

  Returns:
    [B, T] deviations.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  check_shapes(mask.shape, teacher_logprobs=teacher_logprobs)
  values = np.where(mask, teacher_logprobs, 0)
  mean = np.sum(values) / np.maximum(np.sum(mask), 1)
  values = np.where(mask, values - mean, 0)
  return (values / _batch_std(values, mask)).astype(teacher_logprobs.dtype)


def teacher_value(
  teacher_logprobs: np.ndarray,
  mask: np.ndarray,
  returns: np.ndarray,
  group_ids: np.ndarray,
  *,
  temperature: float,
) -> np.ndarray:
  """Compares returns of rows likely and unlikely under the teacher.

    αᵢ = σ((mean(log π_T)ᵢ - its mean over rows) / temperature)
    TVA_g = Σ_g αᵢRᵢ / Σ_g αᵢ - Σ_g (1-αᵢ)Rᵢ / Σ_g (1-αᵢ)

  A group of one row has 0.

  Args:
    teacher_logprobs: [B, T] float, nats.
    mask: [B, T] bool; a row without tokens is a padding row.
    returns: [B] float, return units: R, the episode's score.
    group_ids: [B] int: tasks.
    temperature: nats, > 0.

  Returns:
    [B] return units.

  Source: ADRS (arXiv 2608.03223), its completion level, read in its code
    (confidence C).
  """
  check_shapes(mask.shape, teacher_logprobs=teacher_logprobs)
  check_shapes(mask.shape[:1], returns=returns, group_ids=group_ids)
  tokens = np.sum(mask, axis=1)
  real = tokens > 0
  means = np.sum(np.where(mask, teacher_logprobs, 0), axis=1) / np.maximum(tokens, 1)
  overall = np.sum(means) / np.maximum(np.sum(real), 1)
  aligned = _sigmoid((means - overall) / temperature)
  returns = checked_scores(returns, real)
  segments, first = segments_of(~real, group_ids)
  shifted = returns - returns[first]  # Equal returns, or a single one, give exactly 0.
  share = lambda weights: (
    segment_sum(segments, weights * shifted) / (segment_sum(segments, weights) + EPS)
  )
  return (share(aligned) - share(1.0 - aligned)).astype(returns.dtype)


def value_gate(value: np.ndarray, mask: np.ndarray, *, gate_scale: float) -> np.ndarray:
  """Opens the gate of rows with a useful teacher: g = σ(τ·TVA).

  Args:
    value: [B] float, return units, of `teacher_value`.
    mask: [B, T] bool.
    gate_scale: τ, per return unit (2 in the paper).

  Returns:
    [B, T] in [0, 1], constant in a row.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  check_shapes(mask.shape[:1], value=value)
  return np.where(mask, _sigmoid(gate_scale * value)[:, None], 0)


def shaped_rewards(
  rewards: np.ndarray,
  teacher_reward: np.ndarray,
  gate: np.ndarray,
  *,
  shaping_coef: float,
) -> np.ndarray:
  """Adds the teacher's gated rewards: r'ₜ = rₜ + η·gₜ·rᵀₜ.

  Args:
    rewards: [B, T] float, return units, as `returns.token_rewards` places them.
    teacher_reward: [B, T] float, of `teacher_rewards`.
    gate: [B, T] in [0, 1], of `value_gate`; 1 for no gate.
    shaping_coef: η, return units (0.02 to 0.1 in the paper).

  Returns:
    [B, T] return units.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  check_shapes(rewards.shape, teacher_reward=teacher_reward, gate=gate)
  return rewards + shaping_coef * gate * teacher_reward
