"""Token credit by a teacher's gap.

Maps from advantages and gaps to [B, T] advantages. They run before a step is cut into
minibatches, with gaps from `old_logprobs`.
"""

import numpy as np

from sdar_jax.advantages.checks import check_shapes
from sdar_jax.advantages.grpo import EPS, uniform_credit
from sdar_jax.advantages.segments import (
  centre,
  in_turn,
  recurrence,
  segment_sum,
  segments_of,
)

LOG_WEIGHT_LIMIT = 20.0
BELIEF_FLOOR = 1e-6
PRIOR_FLOOR = 1e-4
GRSD_FLOOR = 0.1


def rlsd_credit(
  advantages: np.ndarray,
  gap: np.ndarray,
  response_mask: np.ndarray,
  *,
  rlsd_lambda: float,
  rlsd_clip: float,
) -> np.ndarray:
  """Redistributes a row's advantage over its tokens (RLSD).

    wₜ = clip(exp(sign(A)·Δₜ), 1 - ε, 1 + ε),  Aₜ = A · [(1 - λ) + λ·wₜ]

  Args:
    rlsd_lambda: λ in [0, 1]; 0 is `uniform_credit`.
    rlsd_clip: ε in [0, 1).

  Source: RLSD (arXiv 2604.03128); verl/trainer/ppo/rlsd_utils.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  check_shapes(response_mask.shape[:1], advantages=advantages)
  check_shapes(response_mask.shape, gap=gap)
  gap = np.where(response_mask, gap, 0)
  signed = np.sign(advantages)[:, None] * gap
  weights = np.exp(np.clip(signed, -LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT))
  weights = np.clip(weights, 1.0 - rlsd_clip, 1.0 + rlsd_clip)
  shaped = advantages[:, None] * ((1.0 - rlsd_lambda) + rlsd_lambda * weights)
  return np.where(response_mask, shaped, 0)


def agent_opsd_credit(
  advantages: np.ndarray,
  gap: np.ndarray,
  trajectory_ids: np.ndarray,
  turn_ids: np.ndarray,
  prior: np.ndarray,
  response_mask: np.ndarray,
  *,
  mix: float,
  band: float,
) -> np.ndarray:
  """Weighs turns by how far they moved the belief in success (AgentOPSD).

    dₖ = Σₜ Δₖₜ,  logit Vₖ = logit V₀ + Σ_{j≤k} dⱼ,  qₖ = Vₖ - Vₖ₋₁
    zₖ = (qₖ - mean(q)) / (std(q) + 1e-6)
    mₖ = clip(1 + b·sign(A)·zₖ, 1 - b, 1 + b),  Aₖ = A · [(1 - λ) + λ·mₖ]

  Mean and (biased) deviation run over the episode's turns; an episode of one turn, or
  one whose beliefs move equally, keeps its advantages. Long responses saturate V, and
  then only the first turns move it.

  Args:
    prior: [B] float in [0, 1], equal within an episode: V₀, as the success rate.
    mix: λ in [0, 1]; 0 is `uniform_credit`.
    band: b in [0, 1).

  Source: AgentOPSD (arXiv 2608.05987), read in its code (confidence C), turn
    granularity: λ 0.5 and b 0.2 in the ALFWorld script.
  """
  check_shapes(response_mask.shape, gap=gap)
  check_shapes(advantages.shape, trajectory_ids=trajectory_ids, turn_ids=turn_ids)
  check_shapes(advantages.shape, prior=prior)
  evidence = np.sum(np.where(response_mask, gap, 0), axis=1)
  segments, first = segments_of(~response_mask.any(axis=1), trajectory_ids)
  moves = _belief_moves(evidence, segments, turn_ids, prior)
  centred, _, count = centre(moves, np.ones(len(moves), bool), segments, first)
  std = np.sqrt(segment_sum(segments, centred**2) / count)
  scores = np.sign(advantages) * centred / (std + EPS)
  weights = np.clip(1.0 + band * scores, 1.0 - band, 1.0 + band)
  shaped = advantages * ((1.0 - mix) + mix * weights)
  return uniform_credit(shaped.astype(advantages.dtype), response_mask)


def _belief_moves(evidence, segments, turn_ids, prior) -> np.ndarray:
  """[B] Vₖ - Vₖ₋₁ of every row."""
  order, goes_on = in_turn(segments, turn_ids)
  sums = recurrence(evidence[order], goes_on.astype(evidence.dtype))
  prior = np.clip(prior[order], PRIOR_FLOOR, 1.0 - PRIOR_FLOOR)
  logits = np.log(prior / (1.0 - prior)) + sums
  beliefs = 0.5 * (1.0 + np.tanh(0.5 * logits))  # The sigmoid, which cannot overflow.
  beliefs = np.clip(beliefs, BELIEF_FLOOR, 1.0 - BELIEF_FLOOR)
  before = np.where(goes_on, np.roll(beliefs, 1), prior)
  return (beliefs - before)[np.argsort(order)]


def grsd_credit(
  advantages: np.ndarray,
  gap: np.ndarray,
  group_ids: np.ndarray,
  prior_mask: np.ndarray,
  response_mask: np.ndarray,
  *,
  mix: float,
  signal_clip: float,
) -> np.ndarray:
  """Weighs turns by how far the group's reflection agrees (GRSD).

    q = sign(A) · mean(Δ),  e = exp(clip(q, -20, 20)) - 1,  ê = e / (mean_g |e| + 1e-6)
    A' = A · max(0.1, 1 + λ·clip(ê, -c, c))

  The mean of |e| runs over the group's rows with a prior; rows without one keep A. The
  amplified side has no bound but c: at c = 3 and λ = 1/2 an advantage grows up to 2.5
  times.

  Args:
    gap: [B, T] float, nats: Δ, teacher_logprobs - old_logprobs under the group's prior.
    prior_mask: [B] bool: the row's group had both outcomes, so that a contrastive prior
      exists.
    mix: λ >= 0; 0 is `uniform_credit`.
    signal_clip: c > 0.

  Source: GRSD (arXiv 2607.28076), read in its code (confidence C): λ 0.5, c 3.
  """
  check_shapes(response_mask.shape, gap=gap)
  check_shapes(advantages.shape, group_ids=group_ids, prior_mask=prior_mask)
  tokens = np.sum(response_mask, axis=1)
  total = np.sum(np.where(response_mask, gap, 0), axis=1)
  agreement = np.sign(advantages) * total / np.maximum(tokens, 1)
  signal = np.expm1(np.clip(agreement, -LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT))
  active = prior_mask & (tokens > 0)
  signal = np.where(active, signal, 0)
  segments, _ = segments_of(~active, group_ids)
  count = segment_sum(segments, active)
  scale = segment_sum(segments, np.abs(signal)) / np.maximum(count, 1.0)
  signal = signal / (scale + EPS)
  weights = 1.0 + mix * np.clip(signal, -signal_clip, signal_clip)
  shaped = advantages * np.maximum(weights, GRSD_FLOOR)
  return uniform_credit(shaped.astype(advantages.dtype), response_mask)


def opid_credit(
  credit: np.ndarray,
  gap: np.ndarray,
  response_mask: np.ndarray,
  skill_mask: np.ndarray,
  *,
  weight: float,
  gap_clip: float | None = None,
) -> np.ndarray:
  """Adds the gap under a hindsight skill to the advantage (OPID).

    A'ₜ = Aₜ + w·clip(Δₜ, -c, c)

  Called once per kind of skill, episode skills first and then step skills, each with
  its rows and weight; a row that has both kinds uses the step skill in the paper.

  Args:
    credit: [B, T] float: A.
    gap: [B, T] float, nats: Δ, teacher_logprobs - old_logprobs under the skill.
    skill_mask: [B] bool, rows that have a skill of this kind.
    weight: w, advantage units per nat.
    gap_clip: c > 0, nats, or None.

  Source: OPID (arXiv 2606.26790), read in its code (confidence C): w 0.001 for both
    kinds, not clipped.
  """
  check_shapes(response_mask.shape, credit=credit, gap=gap)
  check_shapes(response_mask.shape[:1], skill_mask=skill_mask)
  gap = np.where(response_mask & skill_mask[:, None], gap, 0)
  if gap_clip is not None:
    gap = np.clip(gap, -gap_clip, gap_clip)
  return np.where(response_mask, credit + weight * gap, 0).astype(credit.dtype)
