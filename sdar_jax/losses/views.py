"""Distillation from two views of a teacher and their consensus (AVSD)."""

import math

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked, variants
from sdar_jax.losses.masked import Array

EPS = 1e-8


def adaptive_target(
  logprobs: Array, teacher_logprobs: Array, contrast_logprobs: Array, mask: Array
) -> jax.Array:
  """Moves from the geometric to the arithmetic mean of two views (AVSD).

    g = ½(l₁ + l₂),  J = max(0, log ½(e^l₁ + e^l₂) - g)
    δᵢ = lᵢ - log π,  d = ½(δ₁ + δ₂),  w = |d| / ½(|δ₁| + |δ₂|) · |d| / (|d| + J)
    l* = g + w·J

  with 1e-8 added to both denominators: views that disagree about the student's token
  add nothing to their consensus g.

  Returns:
    [B, T] nats, 0 where masked; no gradient.

  Source: AVSD (arXiv 2605.20643), its sampled-token form with gate 'avsd', read in
    duykhuongnguyen/AVSD@3233099, src/avsd/common/multiview_distill.py; with two views,
    which are full solution, rationale and answer there.
  """
  chex.assert_rank([logprobs, teacher_logprobs, contrast_logprobs], 2)
  arrays = masked.fill(mask, logprobs, teacher_logprobs, contrast_logprobs)
  student, one, two = jax.lax.stop_gradient(arrays)
  consensus = 0.5 * (one + two)
  residual = jnp.logaddexp(one, two) - math.log(2.0) - consensus
  residual = jnp.maximum(residual, 0.0)
  agreed = jnp.abs(consensus - student)
  size = 0.5 * (jnp.abs(one - student) + jnp.abs(two - student))
  gate = agreed / (size + EPS) * (agreed / (agreed + residual + EPS))
  return masked.fill(mask, consensus + gate * residual)[0]


def adaptive_views(
  logprobs: Array,
  teacher_logprobs: Array,
  contrast_logprobs: Array,
  mask: Array,
  *,
  gap_clip: float,
) -> jax.Array:
  """Credits tokens with the gap to `adaptive_target`, as `variants.opsd`.

  Returns:
    [B, T] nats squared, of which only the gradient means anything; 0 where masked.

  Source: as `adaptive_target`; the clip is ours.
  """
  target = adaptive_target(logprobs, teacher_logprobs, contrast_logprobs, mask)
  return variants.opsd(logprobs, target, mask, gap_clip=gap_clip)
