"""Distillation weights by their effect on the policy's objective (ICSD)."""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked, policy
from sdar_jax.losses.masked import Array


def _mean(values: Array, where: Array) -> jax.Array:
  """[B, 1] means over the chosen tokens of rows, 0 where there are none."""
  count = jnp.maximum(jnp.sum(where, axis=1, keepdims=True), 1)
  return jnp.sum(jnp.where(where, values, 0.0), axis=1, keepdims=True) / count


def _median(values: Array, where: Array) -> jax.Array:
  """[B, 1] medians over the chosen tokens of rows."""
  count = jnp.sum(where, axis=1, keepdims=True)
  ordered = jnp.sort(jnp.where(where, values, jnp.inf), axis=1)
  middles = jnp.maximum(count - 1, 0) // 2, jnp.where(count > 0, count // 2, 0)
  low, high = (jnp.take_along_axis(ordered, i, axis=1) for i in middles)
  return jnp.where(count > 0, 0.5 * (low + high), 0.0)


def calibrated(values: Array, mask: Array) -> jax.Array:
  """Places values in (0, 1) by the asymmetric Laplace law of their row.

    Φ(u) = ½·exp((u - μ)/b⁻) below the row's median μ, else 1 - ½·exp(-(u - μ)/b⁺)

  with the mean distances b⁻ and b⁺ of the tokens on either side.

  Args:
    values: [B, T] float: u.

  Returns:
    [B, T]; 1/2 everywhere in a row of equal values.
  """
  centre = _median(values, mask)
  away = jnp.where(mask, values - centre, 0.0)
  below = mask & (away < 0)
  tiny = jnp.finfo(away.dtype).tiny
  left = jnp.maximum(_mean(-away, below), tiny)
  right = jnp.maximum(_mean(away, mask & ~below), tiny)
  size = jnp.abs(away) / jnp.where(below, left, right)
  half = 0.5 * jnp.exp(-size)
  return jnp.where(below, half, 1.0 - half)


def influence_weights(
  gate: Array,
  gap: Array,
  advantages: Array,
  logprobs: Array,
  old_logprobs: Array,
  mask: Array,
) -> jax.Array:
  """Redistributes gates to tokens that serve the objective (ICSD).

    uₜ = Aₜ·(π/π_old)ₜ·Δₜ,  mₜ = Φ(uₜ)
    cₜ = α·gₜ·mₜ, with one α in a turn that keeps the sum of its gates

  A token that both disapprove of, A < 0 and Δ < 0, keeps its gate: there u > 0 although
  the term would push it up.

  Args:
    gate: [B, T] in [0, 1]: g.
    gap: [B, T] float, nats: Δ.
    advantages: [B, T] float: A.

  Returns:
    [B, T] weights with each row's sum of gates, 0 where masked; no gradient.

  Source: ICSD (arXiv 2608.14945), from an account of the paper with its equations; a
    median of two middles is their mean, and both sets of tokens enter it.
  """
  chex.assert_rank([gate, gap, advantages], 2)
  gate, gap, advantages = masked.fill(mask, gate, gap, advantages)
  ratio = jnp.exp(policy.log_ratio(logprobs, old_logprobs, mask))
  influence = advantages * ratio * gap
  kept = mask & (advantages < 0) & (gap < 0)
  shared = mask & ~kept
  moved = gate * calibrated(influence, mask)
  total = lambda values: jnp.sum(jnp.where(shared, values, 0.0), axis=1, keepdims=True)
  scale = total(gate) / jnp.maximum(total(moved), jnp.finfo(gate.dtype).tiny)
  weights = jnp.where(shared, scale * moved, gate)
  return jax.lax.stop_gradient(masked.fill(mask, weights)[0])
