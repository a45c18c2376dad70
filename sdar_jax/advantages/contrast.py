"""Token credit by two contexts of a teacher: their form cancels.

The contrast e is [B, T] float, nats: log π_T(y | one) - log π_T(y | the other), 0 on
rows that are not taught.
"""

import math

import numpy as np

from sdar_jax.advantages.checks import check_shapes
from sdar_jax.advantages.segments import segments_of


def _of_the_sign(shaped: np.ndarray, advantages: np.ndarray) -> np.ndarray:
  """Cuts what left the sign of an advantage; nothing where that is 0."""
  positive = np.where(advantages > 0, np.maximum(shaped, 0), shaped)
  return np.where(advantages < 0, np.minimum(shaped, 0), positive)


def rlcsd_credit(
  advantages: np.ndarray,
  contrast: np.ndarray,
  response_mask: np.ndarray,
  *,
  coef: float,
  scale: float,
  floor: float,
) -> np.ndarray:
  """Adds a squashed contrast of hints to some tokens' advantages (RLCSD).

    rₜ = c·tanh(eₜ / τ),  S = {t: |rₜ| > δ},  A'ₜ = Aₜ + rₜ on S, cut at 0 to keep the
    sign of Aₜ; 0 where Aₜ = 0

  The paper takes two means, over S and over the other tokens, and adds them: tokens of
  S are multiplied by N / |S|, the others by N / (N - |S|), which under 'token-mean' is
  the same, counted over the step and not over a microbatch.

  Args:
    advantages: [B, T] float.
    contrast: under a right hint, less under a wrong one.
    coef: c, advantage units: its β·λ. (Its bounds of ±2 on r are beyond c.)
    scale: τ > 0, nats.
    floor: δ >= 0, advantage units.

  Source: RLCSD (arXiv 2606.11709), read in THU-BPM/RLCSD@7eeff3c,
    third_party/verl/verl/trainer/ppo/core_algos.py, with one wrong hint: its K is up to
    4. τ 0.02, β 1, λ 0.5, δ 0.02, η 1 in its configs.
  """
  check_shapes(response_mask.shape, advantages=advantages, contrast=contrast)
  added = coef * np.tanh(np.where(response_mask, contrast, 0) / scale)
  chosen = response_mask & (np.abs(added) > floor)
  moved = np.where(advantages == 0, 0, _of_the_sign(advantages + added, advantages))
  tokens, some = np.sum(response_mask), np.sum(chosen)
  shares = tokens / np.maximum(some, 1), tokens / np.maximum(tokens - some, 1)
  shaped = np.where(chosen, shares[0] * moved, shares[1] * advantages)
  return np.where(response_mask, shaped, 0).astype(advantages.dtype)


def sipo_credit(
  advantages: np.ndarray,
  contrast: np.ndarray,
  response_mask: np.ndarray,
  *,
  coef: float,
  clip: float,
) -> np.ndarray:
  """Adds a clipped contrast of an answer with a mistake (SIPO).

    A'ₜ = Aₜ + κ·clip(eₜ, -ε, ε), cut at 0 to keep the sign of Aₜ

  A token without an advantage, as in a group where all failed, keeps the contrast's.

  Args:
    advantages: [B, T] float.
    contrast: under the answer, less under the mistake.
    coef: κ, advantage units per nat.
    clip: ε > 0, nats; math.inf for none.

  Source: SIPO (arXiv 2609.36742), its additive form, read in
    Yueeeeeeee/SIPO@44d10ba, verl/trainer/ppo/core_algos.py: κ 0.5, ε 0.2.
  """
  check_shapes(response_mask.shape, advantages=advantages, contrast=contrast)
  added = coef * np.clip(np.where(response_mask, contrast, 0), -clip, clip)
  shaped = _of_the_sign(advantages + added, advantages)
  return np.where(response_mask, shaped, 0).astype(advantages.dtype)


def ocsd_credit(
  advantages: np.ndarray,
  contrast: np.ndarray,
  old_logprobs: np.ndarray,
  trajectory_ids: np.ndarray,
  response_mask: np.ndarray,
  *,
  mix: float,
  share: float,
) -> np.ndarray:
  """Weighs tokens of unsure turns by what the answer changed (OCSD).

    qₜ = tanh(eₜ / 2),  Aₜ = A · (1 + β·sign(A)·qₜ)

  in the ⌈ρT⌉ of an episode's T turns whose mean negative log-prob is largest (all that
  tie with the last of them); the others keep A.

  Args:
    advantages: [B] float.
    contrast: with the world's answer, less with the answer taken out.
    mix: β in [0, 1].
    share: ρ in (0, 1].

  Source: OCSD (arXiv 2608.04788), from an account of the paper with its equations; ρ is
    0.2 there, β is not given, and rounding up is ours.
  """
  check_shapes(response_mask.shape, contrast=contrast, old_logprobs=old_logprobs)
  check_shapes(response_mask.shape[:1], trajectory_ids=trajectory_ids)
  tokens = response_mask.sum(axis=1)
  total = np.where(response_mask, old_logprobs, 0).sum(axis=1)
  surprise = -total / np.maximum(tokens, 1)
  chosen = np.zeros(len(tokens), bool)
  segments, _ = segments_of(tokens == 0, trajectory_ids)
  for segment in np.unique(segments[tokens > 0]):
    rows = np.flatnonzero(segments == segment)
    least = np.sort(surprise[rows])[-math.ceil(share * len(rows))]
    chosen[rows] = surprise[rows] >= least
  signal = np.tanh(np.where(response_mask & chosen[:, None], contrast, 0) / 2)
  weights = 1.0 + mix * np.sign(advantages)[:, None] * signal
  shaped = advantages[:, None] * weights
  return np.where(response_mask, shaped, 0).astype(advantages.dtype)
