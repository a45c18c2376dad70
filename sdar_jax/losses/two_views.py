"""UCOB: one policy under two prompts, with and without skills; the better one teaches.

Rollouts of a group are mixed. Where both views reached the same anchor state, the view
with the higher return from there is the teacher of the other, in either direction.
"""

import chex
import jax

from sdar_jax.losses import distill, masked
from sdar_jax.losses.masked import Array, namespace
from sdar_jax.losses.segments import paid, segment_sum, segments_of


def view_gaps(
  step_returns: Array,
  group_ids: Array,
  anchor_ids: Array,
  sees_skills: Array,
  row_mask: Array,
) -> Array:
  r"""By how much the other view did better from a row's anchor state.

  \[ \delta_i = \bar G_{g,a}^{\,other} - \bar G_{g,a}^{\,own} \]

  Args:
    step_returns: [B] float, return units, of `returns.step_returns`.
    group_ids: [B] int.
    anchor_ids: [B] int, of `anchors.anchor_ids`.
    sees_skills: [B] bool: the row's view.
    row_mask: [B] bool, False for padding rows.

  Returns:
    [B] return units; 0 where the other view never met this anchor, and for padding
    rows. The two views' gaps are opposite.

  Raises:
    ValueError: on the host, a return that is not finite.

  Source: UCOB (arXiv 2606.29502), its local credit (confidence C).
  """
  chex.assert_rank([step_returns, group_ids, anchor_ids, sees_skills, row_mask], 1)
  xp = namespace(step_returns, group_ids, anchor_ids, sees_skills, row_mask)
  returns = paid(xp, step_returns, row_mask)
  segments, first = segments_of(xp, ~row_mask, group_ids, anchor_ids)
  shifted = returns - returns[first]  # So that equal returns give exactly 0.
  means, counts = [], []
  for view in (~sees_skills, sees_skills):
    weights = (view & row_mask).astype(returns.dtype)
    counts.append(segment_sum(xp, segments, weights))
    total = segment_sum(xp, segments, weights * shifted)
    means.append(total / xp.maximum(counts[-1], 1.0))
  lead = xp.where((counts[0] > 0) & (counts[1] > 0), means[1] - means[0], 0.0)
  gaps = xp.where(row_mask, xp.where(sees_skills, -lead, lead), 0.0)
  return gaps.astype(step_returns.dtype)


def view_weights(
  gaps: Array, *, margin: float, temperature: float, weight_cap: float
) -> Array:
  r"""How strongly the other view teaches a row.

  \[ w = \min(\delta/\tau,\ w_{max}) \text{ if } \delta > \text{margin, else } 0 \]

  Args:
    gaps: [B] float, return units, of `view_gaps`.
    margin: return units, >= 0 (0.05 in the paper, for returns in [0, 1]).
    temperature: tau, return units, > 0 (0.2).
    weight_cap: w_max > 0 (2).

  Returns:
    [B] in [0, weight_cap]; of two views of an anchor at most one is taught.

  Source: UCOB (arXiv 2606.29502): margin, tau and cap are its code's (confidence C);
    that the weight is linear in the gap between them is our reading.
  """
  xp = namespace(gaps)
  weights = xp.minimum(gaps / temperature, weight_cap)
  return xp.where(gaps > margin, weights, xp.zeros_like(gaps))


def two_view_distillation(
  logprobs: Array,
  other_logprobs: Array,
  gate: Array,
  action_mask: Array,
  mask: Array,
  *,
  action_weight: float,
) -> jax.Array:
  r"""SDAR's gated term from the better view to the worse, per token.

  \[ \ell_{it} = u_{it}\,g_{it}\,
     (\log\pi_\theta^{other}(y_{it}) - \log\pi_\theta^{own}(y_{it})), \qquad
     g = \mathrm{sg}[\sigma(\beta\Delta)] \]

  with u = `action_weight` on the tokens of the action and 1 on the others. Rows are
  weighted by `view_weights` where they are summed.

  Args:
    logprobs: [B, T] float, nats, under the row's own prompt; the only input with a
      gradient.
    other_logprobs: [B, T] float, nats: the same tokens under the other view's prompt.
    gate: [B, T] in [0, 1]: g, `gates.gap_gate` without a clip.
    action_mask: [B, T] bool: tokens of the action.
    mask: [B, T] bool.
    action_weight: u >= 0 on action tokens (2).

  Returns:
    [B, T] nats, to be minimised; 0 where masked.

  Source: UCOB (arXiv 2606.29502), its sampled-token form (confidence C); its top-k form
    is `divergence.topk` with 'renormalise', times the same weights.
  """
  chex.assert_rank([logprobs, gate, action_mask], 2)
  losses = distill.weighted(logprobs, other_logprobs, gate, mask)
  weights = 1.0 + (action_weight - 1.0) * action_mask.astype(losses.dtype)
  return masked.fill(mask, weights)[0] * losses
