"""Token credit signed by the outcome, and credit without a teacher."""

import math

import numpy as np

from sdar_jax.advantages.checks import check_shapes
from sdar_jax.advantages.grpo import uniform_credit
from sdar_jax.advantages.segments import segment_sum, segments_of


def gated_by_sign(
  advantages: np.ndarray, gap: np.ndarray, *, coef: float, clip: float
) -> np.ndarray:
  """Scales advantages by the gap where it agrees, and stops others.

    A'ₜ = A · c · max(0, sign(A)·clip(Δₜ, -τ, τ))

  With the outcome, +1 or -1, for A this is OPDVR; with a group-relative advantage it is
  its GRPD.

  Args:
    advantages: [B, T] float: A.
    gap: [B, T] float, nats: Δ.
    coef: c, per nat (1 in the paper).
    clip: τ > 0, nats; math.inf for none, as in the paper.

  Source: OPDVR (arXiv 2608.24696), the formulas of LeapLabTHU/OPDVR@048a78d, README.md;
    there the teacher is another model.
  """
  check_shapes(advantages.shape, gap=gap)
  agreement = np.sign(advantages) * np.clip(gap, -clip, clip)
  return (advantages * coef * np.maximum(agreement, 0)).astype(advantages.dtype)


def taspo_credit(
  advantages: np.ndarray,
  gap: np.ndarray,
  trajectory_ids: np.ndarray,
  taught: np.ndarray,
  action_mask: np.ndarray,
  response_mask: np.ndarray,
  *,
  scale: float,
  floor: float,
  band: float,
) -> np.ndarray:
  """Redistributes an episode's advantage over its actions (TASPO).

    dᵢ = mean over the action's tokens of Δₜ·1[|Δₜ| ≥ κ],  d̂ᵢ = dᵢ - mean(d)
    qᵢ = tanh(sign(Aᵢ)·d̂ᵢ / τ),  Aᵢ' = Aᵢ · (1 + ½ε·(qᵢ - mean(q)))

  Means over turns run over an episode's taught ones; others keep their advantage. So
  weights lie in [1 - ε, 1 + ε] and their mean over an episode is 1.

  Args:
    advantages: [B] float: A.
    taught: [B] bool, rows with a lesson.
    action_mask: [B, T] bool, tokens of the action; a row without any has d = 0.
    scale: τ > 0, nats.
    floor: κ >= 0, nats.
    band: ε in [0, 1].

  Source: TASPO (arXiv 2608.31077), from an account of the paper with its formulas; it
    leaves out ε, τ and κ, and its lessons are written by a language model from solved
    episodes, ours are the actions of one.
  """
  check_shapes(response_mask.shape, gap=gap, action_mask=action_mask)
  check_shapes(advantages.shape, trajectory_ids=trajectory_ids, taught=taught)
  acting = response_mask & action_mask
  kept = np.where(acting & (np.abs(gap) >= floor), gap, 0)
  support = kept.sum(axis=1) / np.maximum(acting.sum(axis=1), 1)
  segments, _ = segments_of(~taught, trajectory_ids)
  counts = np.maximum(segment_sum(segments, taught), 1)
  less_mean = lambda values: values - segment_sum(segments, values * taught) / counts
  squashed = np.tanh(np.sign(advantages) * less_mean(support) / scale)
  weights = np.where(taught, 1.0 + 0.5 * band * less_mean(squashed), 1.0)
  shaped = (advantages * weights).astype(advantages.dtype)
  return uniform_credit(shaped, response_mask)


def unlikely(old_logprobs: np.ndarray, mask: np.ndarray, *, share: float) -> np.ndarray:
  """Selects the share of the step's tokens with the lowest log-probs.

  The ⌊fN⌋ lowest of N tokens, at least one, and all that tie with the last of them.

  Args:
    old_logprobs: [B, T] float, nats.
    mask: [B, T] bool.
    share: f in (0, 1].

  Returns:
    [B, T] bool.

  Source: OPSA (arXiv 2608.31046), slime/docs/en/advanced/opsa.md of
    DripNowhy/On-Policy-Self-Adaptation@b09c0b2 (f 0.2), which counts over a device's
    batch.
  """
  check_shapes(mask.shape, old_logprobs=old_logprobs)
  values = np.sort(old_logprobs[mask])
  if not len(values):
    return mask
  last = values[max(1, math.floor(share * len(values))) - 1]
  return mask & (np.where(mask, old_logprobs, np.inf) <= last)


def opsa(
  old_logprobs: np.ndarray,
  old_entropy: np.ndarray,
  response_mask: np.ndarray,
  *,
  share: float,
  amount: float,
) -> np.ndarray:
  """Pushes unlikely tokens down, most where the policy is unsure (OPSA).

    Aₜ = a·(1 + rₜ)·N/K on the K `unlikely` of N tokens, 0 on the others
    rₜ = (Hₜ - min H) / (max H - min H) over those K, 1 where they are equal

  N/K undoes that the others count in a mean over tokens; the paper leaves them out.

  Args:
    old_entropy: [B, T] float, nats: H.
    amount: a: -0.5 gives the paper's -0.5 to -1.

  Returns:
    [B, T] advantages.

  Source: as `unlikely`; arXiv 2608.31046 sec. 4.2.
  """
  check_shapes(response_mask.shape, old_entropy=old_entropy)
  chosen = unlikely(old_logprobs, response_mask, share=share)
  if not chosen.any():
    return np.zeros_like(old_logprobs)
  entropy = old_entropy[chosen]
  least, span = entropy.min(), entropy.max() - entropy.min()
  ranks = np.where(chosen, (old_entropy - least) / span if span else 1.0, 0)
  scale = response_mask.sum() / chosen.sum()
  shaped = np.where(chosen, amount * (1.0 + ranks) * scale, 0)
  return shaped.astype(old_logprobs.dtype)
