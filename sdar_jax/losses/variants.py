"""Variants of the distillation term on sampled tokens.

Gradients reach `logprobs` only.
"""

import math

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import distill, masked
from sdar_jax.losses.masked import Array

SKILL_SD_GAP_LIMIT = 20.0
SKILL_SD_LOG_RATIO_LIMIT = 10.0


def ratio_weights(
  weights: Array,
  logprobs: Array,
  old_logprobs: Array,
  mask: Array,
  *,
  ratio_limit: float,
) -> jax.Array:
  """Multiplies weights by the truncated ratio: w · min(sg[π/π_old], c).

  With it the gradient of `distill.weighted` is the current policy's again, up to the
  truncation. At ratio 1 it leaves the weights as they are, bit for bit.

  Args:
    weights: [B, T] float: w.
    ratio_limit: c, >= 1.

  Returns:
    [B, T], 0 where masked; no gradient.

  Source: ours; truncation after Ionides 2008 (truncated importance sampling).
  """
  chex.assert_rank([weights, logprobs, old_logprobs], 2)
  logprobs, old_logprobs, weights = masked.fill(mask, logprobs, old_logprobs, weights)
  log_ratio = jnp.minimum(logprobs - old_logprobs, math.log(ratio_limit))
  return jax.lax.stop_gradient(weights * jnp.exp(log_ratio))


def centred(gate: Array, mask: Array, mean: Array | float) -> jax.Array:
  """Subtracts the step's mean from a gate, so that only differences teach.

  The constant part of a gate pushes every sampled token up whatever the teacher
  thinks: no signal, only variance (and, off policy, a loss of entropy).

  Args:
    gate: [B, T] in [0, 1].
    mean: scalar, one for all microbatches of a step, or they would disagree.

  Returns:
    [B, T] in [-1, 1], 0 where masked; no gradient.

  Source: ours: a baseline for SDAR's gradient, which is REINFORCE with the token
    reward g.
  """
  chex.assert_rank([gate, mean], [2, 0])
  (out,) = masked.fill(mask, gate - mean)
  return jax.lax.stop_gradient(out)


def gate_advantages(
  advantages: Array, gate: Array, mask: Array, *, distill_coef: float
) -> jax.Array:
  """Adds the gate to advantages, A + λg: ratio and clips apply to it too.

  Where the ratio is 1 and the token unclipped, the surrogate of these advantages has
  the gradient of the surrogate of A plus λ times `distill.weighted` by the gate.

  Args:
    gate: [B, T] in (0, 1).
    distill_coef: λ, advantage units.

  Returns:
    [B, T] advantages, 0 where masked.

  Source: ours, from the identity that on the policy's own samples the loss form is
    REINFORCE with the token reward g.
  """
  advantages, gate = masked.fill(mask, advantages, gate)
  return advantages + distill_coef * gate


def opsd(
  logprobs: Array, teacher_logprobs: Array, mask: Array, *, gap_clip: float
) -> jax.Array:
  """Credits tokens with the gap, of either sign (OPSD).

    ℓ = -sg[clip(Δ, -τ, τ)] · log π

  Without the clip the expected gradient on the policy's own samples is that of
  KL(π || π_T): tokens that the teacher finds likelier go up, others down. The term of
  this name in ZJU-REAL/SDAR@8b85c23 is SDAR's gated one, which pushes every token up;
  its GRPO+OPSD has gate_beta = 0, where the gate is 1/2 and the gradient does not
  contain the teacher at all.

  Args:
    gap_clip: τ, nats, > 0; math.inf for none.

  Returns:
    [B, T] nats squared, to be minimised (only its gradient means anything); 0 where
    masked.

  Source: OPSD (arXiv 2601.18734), its sampled-token form; issue 16 of ZJU-REAL/SDAR.
  """
  credit = jnp.clip(distill.gap(logprobs, teacher_logprobs, mask), -gap_clip, gap_clip)
  (logprobs,) = masked.fill(mask, logprobs)
  return -credit * logprobs


def skill_sd(
  logprobs: Array, old_logprobs: Array, teacher_logprobs: Array, mask: Array
) -> jax.Array:
  """Estimates KL(π || π_T) by k3, weighted by importance (Skill-SD).

    d = log π - log π_T,  k3 = exp(min(-d, 20)) - 1 + d,
    ρ = exp(min(log π - log π_old, 10)),  ℓ = ρ·k3

  The gradient flows through ρ as well as through k3.

  Source: Skill-SD (arXiv 2604.10674); verl/trainer/ppo/skillsd_utils.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank(logprobs, 2)
  logprobs, old_logprobs, teacher_logprobs = masked.fill(
    mask, logprobs, old_logprobs, teacher_logprobs
  )
  lead = logprobs - jax.lax.stop_gradient(teacher_logprobs)
  k3 = jnp.expm1(jnp.minimum(-lead, SKILL_SD_GAP_LIMIT)) + lead
  moved = logprobs - jax.lax.stop_gradient(old_logprobs)
  return jnp.exp(jnp.minimum(moved, SKILL_SD_LOG_RATIO_LIMIT)) * k3
