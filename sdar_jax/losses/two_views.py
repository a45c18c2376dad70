"""Distillation between two views, with and without skills (UCOB)."""

import chex
import jax

from sdar_jax.losses import distill, masked
from sdar_jax.losses.masked import Array


def two_view_distillation(
  logprobs: Array,
  other_logprobs: Array,
  gate: Array,
  action_mask: Array,
  mask: Array,
  *,
  action_weight: float,
) -> jax.Array:
  """Weighs SDAR's gated term from the better view to the worse.

    ℓ = u · g · (log π_other - log π_own),  g = sg[σ(βΔ)]

  with u = `action_weight` on the tokens of the action and 1 on the others. Rows are
  weighted by `advantages.two_views.view_weights` where they are summed.

  Args:
    logprobs: [B, T] float, nats, under the row's own prompt; alone has a gradient.
    other_logprobs: [B, T] float, nats: the same tokens under the other view's prompt.
    gate: [B, T] in [0, 1]: g, `gates.gap_gate` without a clip.
    action_mask: [B, T] bool: tokens of the action.
    action_weight: u >= 0 on action tokens (2).

  Source: UCOB (arXiv 2606.29502), its sampled-token form (confidence C).
  """
  chex.assert_rank([logprobs, gate, action_mask], 2)
  losses = distill.weighted(logprobs, other_logprobs, gate, mask)
  weights = 1.0 + (action_weight - 1.0) * action_mask.astype(losses.dtype)
  return masked.fill(mask, weights)[0] * losses
