"""Fuses two estimates of a turn's credit, as UniOPSD does. No JAX.

Source: UniOPSD (arXiv 2609.34810), the formulas of verl/trainer/ppo/rlsd_utils.py and
  rlsd_ray_trainer.py of Zenghuang-Fu/Uniopsd@09913ab (form fusion, c_mode corr).
"""

from typing import NamedTuple

import numpy as np

from sdar_jax.advantages.baselines import step_relative
from sdar_jax.advantages.checks import check_shapes
from sdar_jax.advantages.segments import centre, segments_of

EPS = 1e-6


class Estimates(NamedTuple):
  """Holds two estimates of a turn's lead over others of its state.

  Attributes:
    own: [B] float, the environment's: its returns against those of equal states.
    teacher: [B] float, the teacher's: its mean gap against theirs, on the same scale.
    precision: [B] float, of `own`; 0 where all of a state had equal returns.
    teacher_precision: [B] float, of `teacher`; 0 where it saw nothing.
  """

  own: np.ndarray
  teacher: np.ndarray
  precision: np.ndarray
  teacher_precision: np.ndarray

  @property
  def both(self) -> np.ndarray:
    """Selects turns of which either says something, [B] bool."""
    return (self.precision > 0) & (self.teacher_precision > 0)


def estimates(
  gap: np.ndarray,
  step_returns: np.ndarray,
  group_ids: np.ndarray,
  anchor_ids: np.ndarray,
  response_mask: np.ndarray,
  row_mask: np.ndarray,
  *,
  step_weight: float,
  divide_by_std: bool,
) -> Estimates:
  """Estimates every turn's credit twice.

    O = s·(d - μ_{g,a}(d)),  d = mean over tokens of Δₜ,  s = σ(S) / σ(O / s)
    precisions: n_{g,a} / σ²_{g,a}(G) of S, L / (s²·Var(Δₜ)) of O

  where S is `baselines.step_relative` times w, σ without indices is over the turns
  whose teacher saw something, and L counts tokens.

  Args:
    gap: [B, T] float, nats: Δ; 0 where the teacher saw nothing.
    step_returns: [B] float, return units: G.
    group_ids: [B] int.
    anchor_ids: [B] int, equal within a group iff the states are.
    response_mask: [B, T] bool.
    row_mask: [B] bool.
    step_weight: w.
    divide_by_std: of S.
  """
  check_shapes(response_mask.shape, gap=gap)
  check_shapes(row_mask.shape, step_returns=step_returns, anchor_ids=anchor_ids)
  own = step_weight * step_relative(
    step_returns, group_ids, anchor_ids, row_mask, divide_by_std=divide_by_std
  )
  lengths = np.maximum(response_mask.sum(axis=1), 1)
  mean = gap.sum(axis=1) / lengths
  spread = np.where(response_mask, (gap - mean[:, None]) ** 2, 0).sum(axis=1) / lengths
  asked = row_mask & (gap != 0).any(axis=1)
  segments, first = segments_of(~row_mask, group_ids, anchor_ids)
  counted = np.ones_like(row_mask)
  teacher, _, _ = centre(mean, counted, segments, first)
  _, std, count = centre(step_returns, counted, segments, first)
  scale = 0.0
  if asked.sum() > 1 and (size := teacher[asked].std(ddof=1)) > EPS:
    scale = own[asked].std(ddof=1) / (size + EPS)
  played = row_mask & (count > 1) & (std > 0)
  noise = np.maximum(spread / lengths * scale**2, EPS)
  return Estimates(
    own,
    teacher * scale,
    np.where(played, count / np.maximum(std**2, EPS), 0.0),
    np.where(asked, 1.0 / noise, 0.0),
  )


def trust(correlation: float, reliability: float) -> float:
  """Computes the weight of the environment's estimate, in [0, 1].

    c* = u·(u - ρ²) / (u² - 2u·ρ² + ρ²)

  It is 1 where the two do not agree at all (ρ = 0), whatever the teacher's precision.

  Args:
    correlation: ρ, of the two estimates; below 0 counts as 0.
    reliability: u in (0, 1], the share of S's variance that is no noise.
  """
  square = min(max(correlation, 0.0), 1.0) ** 2
  square = min(square, reliability * (1 - EPS))
  value = reliability * (reliability - square)
  value /= reliability**2 - 2 * reliability * square + square
  return min(max(value, 0.0), 1.0)


def fused(found: Estimates, trusted: float) -> np.ndarray:
  """Fuses the estimates of every turn, [B] float.

    c·S + (1 - c)·O,  c = k·p / (k·p + q),  k = c* / (1 - c*)

  with p and q the precisions over their own medians, among turns that have both. Where
  the environment says nothing c is c*, where the teacher does, 1.

  Args:
    found: the estimates.
    trusted: c*.
  """
  if trusted >= 1 - EPS:
    return found.own
  asked = found.teacher_precision > 0
  own = found.precision / _median(found.precision, found.both)
  theirs = found.teacher_precision / _median(found.teacher_precision, found.both)
  odds = trusted / (1 - trusted) * own
  with np.errstate(invalid='ignore'):
    weighed = odds / (odds + theirs)
  share = np.where(found.both, weighed, np.where(asked, trusted, 1.0))
  return share * found.own + (1 - share) * found.teacher


def _median(values: np.ndarray, among: np.ndarray) -> float:
  """Takes the lower median, as the source does.

  Args:
    values: [B] float, 0 where there is nothing.
    among: [B] bool, of which; of all that there is where it is none.
  """
  chosen = values[among if among.any() else values > 0]
  return (
    max(float(np.sort(chosen)[(len(chosen) - 1) // 2]), EPS) if len(chosen) else 1.0
  )


def correlation(found: Estimates) -> float | None:
  """Correlates the estimates where both say something; None if it cannot."""
  own, theirs = found.own[found.both], found.teacher[found.both]
  if len(own) < 2 or not own.std() or not theirs.std():
    return None
  return float(np.corrcoef(own, theirs)[0, 1])
