"""Policy losses: clipped surrogate, KL to the reference, entropy.

Per token, [B, T] in and [B, T] out, exactly 0 where masked; `masked.aggregate` makes a
scalar of it. Gradients reach `logprobs` and `entropy` only.
"""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array
from sdar_jax.methods.hyperparameters import KEYS

# Beyond this the exponent is cut and carries no gradient: exp(20) = 4.9e8.
LOG_RATIO_LIMIT = 20.0
K3_LIMIT = 10.0
KL_KINDS = KEYS['kl_kind'].allowed


def log_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> jax.Array:
  """Takes log(π/π_old) of sampled tokens, masked first, clamped to ±20.

  Returns:
    [B, T] nats, 0 where masked. No gradient beyond the clamp.

  Source: the clamp is ours; ZJU-REAL/SDAR@8b85c23 has none.
  """
  logprobs, old_logprobs = masked.fill(mask, logprobs, old_logprobs)
  difference = logprobs - jax.lax.stop_gradient(old_logprobs)
  return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def pessimistic(ratio, advantages, clip_low, clip_high) -> tuple[jax.Array, jax.Array]:
  """Takes the worse of plain and clipped losses.

  Returns:
    [B, T] losses; [B, T] bool, where the clip decides them.
  """
  plain = -advantages * ratio
  clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  return jnp.where(clipped > plain, clipped, plain), clipped > plain


def clipped_surrogate(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float,
) -> jax.Array:
  """Clips PPO's surrogate, with separate clips and the dual clip.

    r = π/π_old,  ℓ = max(-A·r, -A·clip(r, 1 - ε_l, 1 + ε_h)),
    ℓ ← min(ℓ, -A·c) where A < 0

  Args:
    clip_low: ε_l, in [0, 1].
    clip_high: ε_h, >= 0.
    dual_clip: c, >= 1.

  Source: Schulman et al. 2017 (arXiv 1707.06347) eq. 7; dual clip: Ye et al. 2020
    (arXiv 1912.09729) eq. 5; separate clips: DAPO (arXiv 2503.14476) eq. 10;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([logprobs, advantages], 2)
  (advantages,) = masked.fill(mask, jax.lax.stop_gradient(advantages))
  ratio = jnp.exp(log_ratio(logprobs, old_logprobs, mask))
  losses, _ = pessimistic(ratio, advantages, clip_low, clip_high)
  bound = -advantages * dual_clip
  return jnp.where((advantages < 0) & (bound < losses), bound, losses)


def kl_penalty(
  logprobs: Array, ref_logprobs: Array, mask: Array, *, kind: str
) -> jax.Array:
  """Estimates KL(π || π_ref) from the sampled tokens.

    d = log π_ref - log π
    k1 = -d,  k2 = d²/2,  k3 = clip(exp(d) - d - 1, -10, 10),  abs = |d|

  In k3 the exponent d is clamped to [-20, 20], which its own clip makes invisible
  in value and gradient.

  Args:
    kind: one of `KL_KINDS`.

  Returns:
    [B, T] nats (k2: nats squared), 0 where masked.

  Raises:
    ValueError: unknown `kind`.

  Source: Schulman 2020, "Approximating KL divergence";
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  if kind not in KL_KINDS:
    raise ValueError(f'kl_kind={kind!r}: expected one of {KL_KINDS}')
  chex.assert_rank(logprobs, 2)
  logprobs, ref_logprobs = masked.fill(mask, logprobs, ref_logprobs)
  difference = jax.lax.stop_gradient(ref_logprobs) - logprobs
  if kind == 'k1':
    return -difference
  if kind == 'k2':
    return 0.5 * jnp.square(difference)
  if kind == 'abs':
    # With the subgradient 0 at 0, where the whole batch starts; jnp.abs has 1 there.
    return difference * jax.lax.stop_gradient(jnp.sign(difference))
  difference = jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
  return jnp.clip(jnp.expm1(difference) - difference, -K3_LIMIT, K3_LIMIT)


def entropy_loss(entropy: Array, mask: Array) -> jax.Array:
  """Negates the policy's entropy per token: descent raises entropy.

  Args:
    entropy: [B, T] float, nats.

  Returns:
    [B, T] nats, 0 where masked.

  Source: Williams and Peng 1991; verl/workers/actor/dp_actor.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  (entropy,) = masked.fill(mask, entropy)
  return -entropy
