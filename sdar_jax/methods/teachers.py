"""The teachers' sides of methods. No JAX.

Each constant is a `Distillation` of pure functions; its numbers are its rows'.
"""

import dataclasses

import numpy as np

from sdar_jax.advantages import credit, shaping, two_views
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import Hyperparameters, reads
from sdar_jax.methods.interface import Distillation, StepData, on_device


@reads('gate')
def _selected_gate(hyper: Hyperparameters) -> gates.Gate:
  return gates.find(hyper.gate)


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


@reads('credit_clip')
def _rlsd_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return _reshaped(
    lambda row: credit.rlsd_credit(
      row,
      data.gap,
      data.response_mask,
      rlsd_lambda=coef,
      rlsd_clip=hyper.credit_clip,
    ),
    advantages,
    data,
  )


def _success_rates(data: StepData) -> np.ndarray:
  """Computes the share of a row's group that solved the task, [B]."""
  out = np.zeros(len(data.group_ids))
  for group in np.unique(data.group_ids[data.row_mask]):
    rows = (data.group_ids == group) & data.row_mask
    _, first = np.unique(data.trajectory_ids[rows], return_index=True)
    out[rows] = data.successes[rows][first].mean()
  return out


@reads('credit_clip')
def _belief_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return _reshaped(
    lambda row: credit.agent_opsd_credit(
      row,
      data.gap,
      data.trajectory_ids,
      data.turn_ids,
      _success_rates(data),
      data.response_mask,
      mix=coef,
      band=hyper.credit_clip,
    ),
    advantages,
    data,
  )


@reads('signal_clip')
def _contrast_credit(advantages, data: StepData, hyper: Hyperparameters, coef: float):
  return _reshaped(
    lambda row: credit.grsd_credit(
      row,
      data.gap,
      data.group_ids,
      data.taught,
      data.response_mask,
      mix=coef,
      signal_clip=hyper.signal_clip,
    ),
    advantages,
    data,
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


@reads(
  *('view_gamma', 'view_margin', 'view_temperature', 'view_weight_cap'),
  'anchor_similarity',
)
def _view_weights(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  discounted = data.discounted(hyper.view_gamma)
  states = data.anchor_ids(hyper.anchor_similarity)
  gaps = two_views.view_gaps(
    discounted, data.group_ids, states, data.sees_skills, data.row_mask
  )
  return two_views.view_weights(
    gaps,
    margin=hyper.view_margin,
    temperature=hyper.view_temperature,
    weight_cap=hyper.view_weight_cap,
  )


def _unclipped_gap_gate(gap, *, gate_beta: float):
  return gates.gap_gate(gap, gate_beta=gate_beta, gap_clip=0.0)


@reads()
def _two_view_gate(hyper: Hyperparameters) -> gates.Gate:
  return _unclipped_gap_gate


GATED = Distillation(
  'skills',
  gate=_selected_gate,
  losses=on_device('gated', 'gate_centred', 'ratio_limit'),
  advantages=on_device('gated_advantages', 'gate_centred'),
)
# Every gate is 1/2 at gate_beta=0: no effect, which is the point of a control.
UNGATED = dataclasses.replace(GATED, control=True)
_DIVERGENCE = on_device('divergence', 'divergence', 'topk', 'token_clip', 'jsd_weight')
DIVERGENCE = Distillation('skills', losses=_DIVERGENCE, whole_distribution=True)
SIBLING = Distillation('sibling', losses=_DIVERGENCE, whole_distribution=True)
SAMPLED = Distillation('skills', losses=on_device('sampled_gap', 'gap_clip'))
K3 = Distillation('skills', losses=on_device('k3'))
REDISTRIBUTED = Distillation('skills', coef='credit_mix', credit=_rlsd_credit)
BELIEF = Distillation('skills', coef='credit_mix', credit=_belief_credit)
HINDSIGHT = Distillation('feedback', coef='gap_coef', credit=_added_gap)
CONTRAST = Distillation('contrast', coef='credit_mix', credit=_contrast_credit)
REWARDED = Distillation(
  'skills', coef='shaping_coef', step_gate=_usefulness, rewards=_teacher_rewards
)
TWO_VIEWS = Distillation(
  'other_view',
  gate=_two_view_gate,
  losses=on_device('two_view', 'action_weight'),
  weights=_view_weights,
)
