"""UCOB: which of two views, with and without skills, did better from a state.

Rollouts of a group are mixed. Where both views reached the same anchor state, the view
with the higher return from there is the teacher of the other, in either direction.
"""

import chex

from sdar_jax.advantages.segments import paid, segment_sum, segments_of
from sdar_jax.losses.masked import Array, namespace


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
