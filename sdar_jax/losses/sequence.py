"""Policy loss whose ratio is that of the whole response (GSPO).

Per token, [B, T] in and [B, T] out, exactly 0 where masked, as those of `policy`.
"""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked, measures, policy
from sdar_jax.losses.masked import Array

GSPO_LOG_RATIO_LIMIT = 10.0


def gspo(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> jax.Array:
  """Clips the surrogate by the ratio of the whole response (GSPO).

    s = exp min(10, sg[mean of log(π/π_old) over the response] + log π - sg[log π])
    ℓ = max(-A·s, -A·clip(s, 1 - ε_l, 1 + ε_h))

  The paper aggregates with 'seq-mean-token-mean' and has no dual clip.

  Args:
    clip_low: ε_l (3e-4 in the paper).
    clip_high: ε_h (4e-4 in the paper).

  Source: Zheng et al. 2025 (arXiv 2507.18071) eq. 13 (GSPO-token);
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([logprobs, advantages], 2)
  (advantages,) = masked.fill(mask, jax.lax.stop_gradient(advantages))
  mean = jax.lax.stop_gradient(_sequence_log_ratio(logprobs, old_logprobs, mask))
  (logprobs,) = masked.fill(mask, logprobs)
  log_s = mean + (logprobs - jax.lax.stop_gradient(logprobs))
  ratio = jnp.exp(jnp.minimum(log_s, GSPO_LOG_RATIO_LIMIT))
  return policy.pessimistic(ratio, advantages, clip_low, clip_high)[0]


def _sequence_log_ratio(logprobs, old_logprobs, mask) -> jax.Array:
  """[B, 1] nats, mean log ratio of each response's tokens."""
  ratios = policy.log_ratio(logprobs, old_logprobs, mask)
  counts = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
  return jnp.sum(ratios, axis=1, keepdims=True) / counts


def gspo_metrics(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> masked.Metrics:
  """Measures the policy's move and the clips of `gspo`.

  A response's ratio is that of each of its tokens, and where it is clipped all of their
  gradients stop. Args are those of `gspo`.

  Returns:
    (sum, tokens) each of the metrics of `surrogate_metrics`: ratio and
    log_ratio_clamped (share beyond 10 nats) are of responses, log_ratio_abs and
    approx_kl of tokens; clip_dual is 0.
  """
  logprobs = jax.lax.stop_gradient(logprobs)
  (advantages,) = masked.fill(mask, advantages)
  current, old = masked.fill(mask, logprobs, old_logprobs)
  mean = _sequence_log_ratio(logprobs, old_logprobs, mask)
  mean = jnp.broadcast_to(mean, current.shape)
  ratio = jnp.exp(jnp.minimum(mean, GSPO_LOG_RATIO_LIMIT))
  _, clipped = policy.pessimistic(ratio, advantages, clip_low, clip_high)
  values = {
    'ratio': ratio,
    'log_ratio_clamped': mean > GSPO_LOG_RATIO_LIMIT,
    'clip_high': clipped & (advantages > 0),
    'clip_low': clipped & (advantages < 0),
    'clip_dual': jnp.zeros_like(mask),
  }
  return measures.totals(values, current, old, mask)
