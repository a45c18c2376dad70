"""The teachers that act by credit: what advantages become. No JAX.

Each constant is a `Distillation` of pure functions; its numbers are its rows'.
"""

import math

import numpy as np

from sdar_jax.advantages import contrast, credit, fusion, outcome, shaping
from sdar_jax.methods.hyperparameters import Hyperparameters, reads
from sdar_jax.methods.interface import Distillation, StepData


def _reshaped(reshape, advantages: np.ndarray, data: StepData) -> np.ndarray:
  """Shifts each token's advantage by its row's change under `reshape`.

  Where a row's tokens all have one advantage, as in all group-relative methods, the
  result is `reshape` of it.
  """
  mask = data.response_mask
  first = np.argmax(mask, axis=1)
  row = np.take_along_axis(advantages, first[:, None], axis=1)[:, 0]
  level = np.where(mask, advantages == row[:, None], True).all(axis=1)
  mean = np.where(mask, advantages, 0).sum(1) / np.maximum(mask.sum(1), 1)
  row = np.where(level, row, mean).astype(advantages.dtype)
  shaped = reshape(row)
  added = np.where(mask, advantages + (shaped - row[:, None]), 0)
  return np.where(level[:, None], shaped, added)


def _of_rows(reshape):
  """Makes credit of tokens from credit of rows, by `_reshaped`."""

  def credit_of(advantages, data: StepData, hyper: Hyperparameters, coef: float):
    return _reshaped(lambda row: reshape(row, data, hyper, coef), advantages, data)

  return credit_of


@reads('credit_clip')
@_of_rows
def _rlsd_credit(row, data: StepData, hyper: Hyperparameters, coef: float):
  return credit.rlsd_credit(
    row,
    data.gap,
    data.response_mask,
    rlsd_lambda=coef,
    rlsd_clip=hyper.credit_clip,
  )


@reads('credit_clip')
@_of_rows
def _belief_credit(row, data: StepData, hyper: Hyperparameters, coef: float):
  return credit.agent_opsd_credit(
    row,
    data.gap,
    data.trajectory_ids,
    data.turn_ids,
    data.success_rates,
    data.response_mask,
    mix=coef,
    band=hyper.credit_clip,
  )


@reads('signal_clip')
@_of_rows
def _contrast_credit(row, data: StepData, hyper: Hyperparameters, coef: float):
  return credit.grsd_credit(
    row,
    data.gap,
    data.group_ids,
    data.taught,
    data.response_mask,
    mix=coef,
    signal_clip=hyper.signal_clip,
  )


@reads('gap_clip')
def _added_gap(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return credit.opid_credit(
    advantages,
    data.gap,
    data.response_mask,
    data.taught,
    weight=coef,
    gap_clip=hyper.gap_clip or None,
  )


@reads('credit_clip')
def _failures_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  shaped = _rlsd_credit(advantages, data, hyper, coef)
  return np.where(data.successes[:, None], advantages, shaped)


@reads('gap_scale', 'contrast_floor')
def _hinted_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return contrast.rlcsd_credit(
    advantages,
    data.contrast,
    data.response_mask,
    coef=coef,
    scale=hyper.gap_scale,
    floor=hyper.contrast_floor,
  )


@reads('gap_clip')
def _answered_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return contrast.sipo_credit(
    advantages,
    data.contrast,
    data.response_mask,
    coef=coef,
    clip=hyper.gap_clip or math.inf,
  )


@reads('unlikely_share')
@_of_rows
def _observed_credit(row, data: StepData, hyper: Hyperparameters, coef: float):
  return contrast.ocsd_credit(
    row,
    data.contrast,
    data.old_logprobs,
    data.trajectory_ids,
    data.response_mask,
    mix=coef,
    share=hyper.unlikely_share,
  )


@reads('gap_scale', 'gap_floor')
@_of_rows
def _action_credit(row, data: StepData, hyper: Hyperparameters, coef: float):
  return outcome.taspo_credit(
    row,
    data.gap,
    data.trajectory_ids,
    data.taught,
    data.action_mask,
    data.response_mask,
    scale=hyper.gap_scale,
    floor=hyper.gap_floor,
    band=coef,
  )


def _agreed(signs, advantages, data: StepData, hyper: Hyperparameters, coef: float):
  """Replaces taught tokens' advantages by the gap, signed by `signs`."""
  shaped = outcome.gated_by_sign(
    signs, data.gap, coef=coef, clip=hyper.gap_clip or math.inf
  )
  return np.where(data.taught_mask, shaped, advantages)


@reads('gap_clip')
def _verified_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  solved = np.where(data.successes[:, None], 1, -1).astype(advantages.dtype)
  signs = np.broadcast_to(solved, advantages.shape)
  return _agreed(signs, advantages, data, hyper, coef)


@reads('gap_clip')
def _relative_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return _agreed(advantages, advantages, data, hyper, coef)


@reads('unlikely_share')
def _unlikely_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  chosen = outcome.unlikely(
    data.old_logprobs, data.taught_mask, share=hyper.unlikely_share
  )
  return np.where(chosen, advantages + coef, advantages).astype(advantages.dtype)


def _of_failures(data: StepData) -> np.ndarray:
  return np.where(data.successes[:, None], 0.0, data.gap)


def _two_estimates(data: StepData, hyper: Hyperparameters) -> fusion.Estimates:
  return fusion.estimates(
    _of_failures(data),
    data.discounted(hyper.gamma) - data.penalties,
    data.group_ids,
    data.anchor_ids(hyper.anchor_similarity),
    data.response_mask,
    data.row_mask,
    step_weight=hyper.step_weight,
    divide_by_std=hyper.divide_by_std,
  )


_TWO_ESTIMATES = ('gamma', 'anchor_similarity', 'step_weight', 'divide_by_std')


@reads(*_TWO_ESTIMATES, 'credit_clip', 'step_reliability', 'trust_margin')
def _fused_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  doubt = hyper.trust_margin * data.memory.get('error', 0.0)
  agreement = data.memory.get('agreement', 0.0) - doubt
  trusted = fusion.trust(agreement, hyper.step_reliability)
  found, gap = _two_estimates(data, hyper), _of_failures(data)
  shaped = credit.rlsd_credit(
    fusion.fused(found, trusted),
    gap,
    data.response_mask,
    rlsd_lambda=coef,
    rlsd_clip=hyper.credit_clip,
  )
  # A policy's side with credit of turns, as GiGPO's, has the environment's in it.
  changed = shaped - found.own[:, None]
  changed = np.where((gap != 0).any(axis=1)[:, None] & data.response_mask, changed, 0)
  return (advantages + changed).astype(advantages.dtype)


@reads(*_TWO_ESTIMATES, 'trust_decay')
def _agreement(data: StepData, hyper: Hyperparameters) -> dict[str, float]:
  """Averages how the two estimates correlated, and how sure that is."""
  found, before = _two_estimates(data, hyper), dict(data.memory)
  now, decay = fusion.correlation(found), hyper.trust_decay
  if now is None:
    return before
  steps = 1 / max(1 - decay, 1e-9)
  return {
    'agreement': decay * before.get('agreement', now) + (1 - decay) * now,
    'error': 1 / math.sqrt(found.both.sum() * steps),
  }


@reads('gate_scale')
def _usefulness(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Opens the gate where the teacher's taste paid off, [B, R]."""
  mask = data.taught_mask
  value = shaping.teacher_value(
    data.teacher_logprobs,
    mask,
    data.scores,
    data.group_ids,
    temperature=1.0,
  )
  return shaping.value_gate(value, mask, gate_scale=hyper.gate_scale)


@reads()
def _teacher_rewards(data: StepData, hyper: Hyperparameters, coef: float) -> np.ndarray:
  rewards = shaping.teacher_rewards(data.teacher_logprobs, data.taught_mask)
  nothing = np.zeros_like(rewards)
  return shaping.shaped_rewards(nothing, rewards, data.gate, shaping_coef=coef)


REDISTRIBUTED = Distillation('skills', coef='credit_mix', credit=_rlsd_credit)
BELIEF = Distillation('skills', coef='credit_mix', credit=_belief_credit)
HINDSIGHT = Distillation('feedback', coef='gap_coef', credit=_added_gap)
CONTRAST = Distillation('contrast', coef='credit_mix', credit=_contrast_credit)
REWARDED = Distillation(
  'skills', coef='shaping_coef', step_gate=_usefulness, rewards=_teacher_rewards
)
# Controls: a push that asks no teacher.
UNLIKELY = Distillation(
  'none', coef='unlikely_advantage', credit=_unlikely_credit, control=True
)
HINTED = Distillation(
  'right_hint', contrast='wrong_hint', coef='contrast_coef', credit=_hinted_credit
)
ANSWERED = Distillation(
  'right_hint', contrast='mistake', coef='contrast_coef', credit=_answered_credit
)
OBSERVED = Distillation(
  'observed', contrast='unobserved', coef='credit_mix', credit=_observed_credit
)
ACTIONS = Distillation(
  'sibling', coef='credit_clip', credit=_action_credit, reads_actions=True
)
VERIFIED = Distillation('skills', coef='gap_coef', credit=_verified_credit)
RELATIVE = Distillation('skills', coef='gap_coef', credit=_relative_credit)
FAILURES = Distillation('observed', coef='credit_mix', credit=_failures_credit)
FUSED = Distillation(
  'sibling', coef='credit_mix', credit=_fused_credit, remember=_agreement
)
