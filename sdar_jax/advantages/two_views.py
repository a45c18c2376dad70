"""Comparison of two views, with and without skills (UCOB).

Rollouts of a group are mixed. Where both views reached the same anchor state, the view
with the higher return from there is the teacher of the other, in either direction.
"""

import numpy as np

from sdar_jax.advantages.checks import check_shapes, checked_scores
from sdar_jax.advantages.segments import segment_sum, segments_of


def view_gaps(
  step_returns: np.ndarray,
  group_ids: np.ndarray,
  anchor_ids: np.ndarray,
  sees_skills: np.ndarray,
  row_mask: np.ndarray,
) -> np.ndarray:
  """Measures the other view's lead from each row's anchor state.

    δᵢ = mean_{g,a}(G of the other view) - mean_{g,a}(G of the row's own)

  Args:
    step_returns: [B] float, return units: G, of `returns.step_returns`.
    anchor_ids: [B] int, of `anchors.anchor_ids`.
    sees_skills: [B] bool: the row's view.

  Returns:
    [B] return units; 0 where the other view never met this anchor, and for padding
    rows. The two views' gaps are opposite.

  Source: UCOB (arXiv 2606.29502), its local credit (confidence C).
  """
  check_shapes(step_returns.shape, group_ids=group_ids, anchor_ids=anchor_ids)
  check_shapes(step_returns.shape, sees_skills=sees_skills)
  returns = checked_scores(step_returns, row_mask)
  segments, first = segments_of(~row_mask, group_ids, anchor_ids)
  shifted = returns - returns[first]  # So that equal returns give exactly 0.
  means, counts = [], []
  for view in (~sees_skills, sees_skills):
    counts.append(segment_sum(segments, view))
    means.append(segment_sum(segments, view * shifted) / np.maximum(counts[-1], 1.0))
  lead = np.where((counts[0] > 0) & (counts[1] > 0), means[1] - means[0], 0.0)
  gaps = np.where(row_mask, np.where(sees_skills, -lead, lead), 0.0)
  return gaps.astype(step_returns.dtype)


def view_weights(
  gaps: np.ndarray, *, margin: float, temperature: float, weight_cap: float
) -> np.ndarray:
  """Weighs each row's distillation by the other view's lead.

    w = min(δ/τ, w_max) if δ > margin, else 0

  Args:
    gaps: [B] float, return units: δ, of `view_gaps`.
    margin: return units, >= 0 (0.05 in the paper, for returns in [0, 1]).
    temperature: τ, return units, > 0 (0.2).
    weight_cap: w_max > 0 (2).

  Returns:
    [B] in [0, weight_cap]; of two views of an anchor at most one is taught.

  Source: UCOB (arXiv 2606.29502): margin, τ and cap are its code's (confidence C);
    that the weight is linear in the gap between them is our reading.
  """
  return np.where(gaps > margin, np.minimum(gaps / temperature, weight_cap), 0)
