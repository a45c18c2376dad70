"""Gates: how far to trust the teacher at each token. The gap gate is `distill.gate`.

A gate is [B, T], without gradient, and finite at any gap. `distill.weighted` makes a
loss of it, `distill.gate_advantages` an advantage.
"""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array


def entropy_gate(entropy: Array, mask: Array, *, gate_beta: float) -> jax.Array:
  r"""Trust the teacher where the student is unsure.

  \[ g = \mathrm{sg}[\sigma(\beta h)] \]

  h >= 0, so g >= 1/2: this gate never shuts, and it does not look at the teacher.

  Args:
    entropy: [B, T] float, nats: h, of the student's distribution at each token.
    mask: [B, T] bool.
    gate_beta: beta, 1/nat.

  Returns:
    [B, T] in [1/2, 1), 1/2 where masked; no gradient.

  Source: SDAR (arXiv 2605.15155), the entropy gate of its ablation, from public
    digests of the paper; not in the released code.
  """
  chex.assert_rank(entropy, 2)
  (entropy,) = masked.fill(mask, entropy)
  return jax.lax.stop_gradient(jax.nn.sigmoid(gate_beta * entropy))


def soft_or_gate(
  entropy: Array, gap: Array, mask: Array, *, gate_beta: float
) -> jax.Array:
  r"""Trust the teacher where the student is unsure or the teacher is surer.

  \[ g = \mathrm{sg}[\sigma(\beta\,[1 - (1 - h)(1 - \Delta)])] \]

  An `or` only while h <= 1: it rises with the gap where h < 1, ignores the gap at
  h = 1, and falls with it beyond. Divide entropies by log V to stay inside.

  Args:
    entropy: [B, T] float: h; in [0, 1] for the reading above (the paper does not say
      how it scales it).
    gap: [B, T] float, nats: Delta, of `distill.gap`.
    mask: [B, T] bool.
    gate_beta: beta.

  Returns:
    [B, T] in (0, 1), 1/2 where masked; no gradient.

  Source: SDAR (arXiv 2605.15155), the soft-OR gate of its ablation, from public
    digests of the paper; not in the released code.
  """
  chex.assert_rank([entropy, gap], 2)
  entropy, gap = masked.fill(mask, entropy, gap)
  union = entropy + gap - entropy * gap  # 1 - (1 - h)(1 - gap), exact at 0.
  return jax.lax.stop_gradient(jax.nn.sigmoid(gate_beta * union))


def clipped_gate(gap: Array, *, gate_beta: float, gap_clip: float) -> jax.Array:
  r"""The gap gate with the gap clipped, so that no single token saturates it.

  \[ g = \mathrm{sg}[\sigma(\beta\,\mathrm{clip}(\Delta, -\tau, \tau))] \]

  Args:
    gap: [B, T] float, nats: Delta, of `distill.gap`.
    gate_beta: beta, 1/nat.
    gap_clip: tau, nats, > 0.

  Returns:
    [B, T] in [sigma(-beta tau), sigma(beta tau)], 1/2 where the gap is 0; no gradient.

  Source: ours, after the token clip of OPSD (arXiv 2601.18734).
  """
  chex.assert_rank(gap, 2)
  clipped = jnp.clip(gap, -gap_clip, gap_clip)
  return jax.lax.stop_gradient(jax.nn.sigmoid(gate_beta * clipped))


def centred_gate(gate: Array, mask: Array, mean: Array | float) -> jax.Array:
  r"""A gate less its mean over the minibatch: only differences between tokens teach.

  \[ g_t - \bar g \]

  The constant part of a gate pushes every sampled token up whatever the teacher
  thinks: no signal, only variance (and, off policy, a loss of entropy).

  `mean` must be the whole minibatch's, or microbatches would disagree: the sum over
  its parts of `masked.aggregate(gate, mask, tokens, 'token-mean')`, `tokens` being the
  minibatch's `masked.normaliser_of`.

  Args:
    gate: [B, T] in (0, 1).
    mask: [B, T] bool.
    mean: scalar, the minibatch's mean gate.

  Returns:
    [B, T] in (-1, 1), 0 where masked; no gradient.

  Source: ours: a baseline for SDAR's gradient, which is REINFORCE with the token
    reward g.
  """
  chex.assert_rank([gate, mean], [2, 0])
  (centred,) = masked.fill(mask, gate - mean)
  return jax.lax.stop_gradient(centred)
