"""The teachers' sides of methods: what a privileged self teaches, and how.

Each constant is a `Distillation` of pure functions from `losses/`, with the settings
its paper or released code runs with. Rows of `algorithms.ALGORITHMS` name them.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.advantages import baselines as baselines_lib
from sdar_jax.advantages import credit, shaping, two_views
from sdar_jax.losses import distill
from sdar_jax.losses import two_views as two_views_lib
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import LossConfig, Range, reads
from sdar_jax.methods.interface import Distillation, LossInputs, StepData


@reads('gate')
def _selected_gate(hyper: LossConfig) -> gates.Gate:
  return gates.find(hyper.gate)


@reads('gate_centred', 'ratio_limit')
def _gated_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  mask, weights = inputs.taught_mask, inputs.gate
  if hyper.gate_centred:
    weights = distill.centred(weights, mask, inputs.gate_mean)
  if hyper.ratio_limit:
    weights = distill.ratio_weights(
      weights,
      inputs.logprobs,
      inputs.old_logprobs,
      mask,
      ratio_limit=hyper.ratio_limit,
    )
  return distill.weighted(inputs.logprobs, inputs.teacher_logprobs, weights, mask)


@reads('gate_centred')
def _gated_advantages(
  advantages: jax.Array, inputs: LossInputs, hyper: LossConfig, coef
) -> jax.Array:
  mask, gate = inputs.taught_mask, inputs.gate
  if hyper.gate_centred:
    gate = distill.centred(gate, mask, inputs.gate_mean)
  gate = jnp.where(mask, gate, 0.0) * inputs.teaching[:, None]
  return distill.gate_advantages(
    advantages, gate, inputs.response_mask, distill_coef=coef
  )


@reads('divergence', 'topk', 'token_clip', 'jsd_weight')
def _divergence(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return jnp.where(inputs.taught_mask, inputs.divergence, 0.0)


@reads('gap_clip')
def _sampled_opsd(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return distill.opsd(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.taught_mask,
    gap_clip=hyper.gap_clip or math.inf,
  )


@reads()
def _k3(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return distill.skill_sd(
    inputs.logprobs, inputs.old_logprobs, inputs.teacher_logprobs, inputs.taught_mask
  )


def _reshaped(reshape, advantages: np.ndarray, data: StepData) -> np.ndarray:
  """Applies a map of row advantages to [B, R] advantages: as much is added to tokens.

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
def _rlsd_credit(advantages, data: StepData, hyper: LossConfig, coef: float):
  return _reshaped(
    lambda row: baselines_lib.rlsd_credit(
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
  """[B] the share of a row's group's trajectories that solved the task."""
  out = np.zeros(len(data.group_ids))
  for group in np.unique(data.group_ids[data.row_mask]):
    rows = (data.group_ids == group) & data.row_mask
    _, first = np.unique(data.trajectory_ids[rows], return_index=True)
    out[rows] = data.successes[rows][first].mean()
  return out


@reads('credit_clip')
def _belief_credit(advantages, data: StepData, hyper: LossConfig, coef: float):
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


@reads('credit_clip')
def _contrast_credit(advantages, data: StepData, hyper: LossConfig, coef: float):
  return _reshaped(
    lambda row: credit.grsd_credit(
      row,
      data.gap,
      data.group_ids,
      data.taught,
      data.response_mask,
      mix=coef,
      signal_clip=hyper.credit_clip,
    ),
    advantages,
    data,
  )


@reads('gap_clip')
def _added_gap(advantages, data: StepData, hyper: LossConfig, coef: float):
  return credit.opid_credit(
    advantages,
    data.gap,
    data.response_mask,
    data.taught,
    weight=coef,
    gap_clip=hyper.gap_clip or None,
  )


@reads('gate_scale')
def _usefulness(data: StepData, hyper: LossConfig) -> np.ndarray:
  """[B, R] the gate of rows in whose group the teacher's taste paid off."""
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
def _teacher_rewards(data: StepData, hyper: LossConfig, coef: float) -> np.ndarray:
  rewards = shaping.teacher_rewards(data.teacher_logprobs, data.taught_mask)
  nothing = np.zeros_like(rewards)
  return shaping.shaped_rewards(nothing, rewards, data.gate, shaping_coef=coef)


@reads(
  *('view_gamma', 'view_margin', 'view_temperature', 'view_weight_cap'),
  'anchor_similarity',
)
def _view_weights(data: StepData, hyper: LossConfig) -> np.ndarray:
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
def _two_view_gate(hyper: LossConfig) -> gates.Gate:
  return _unclipped_gap_gate


@reads('action_weight')
def _two_view_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  plain = inputs.action_mask is None  # Where action_weight is 1, every token is alike.
  return two_views_lib.two_view_distillation(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.gate,
    inputs.response_mask if plain else inputs.action_mask,
    inputs.taught_mask,
    action_weight=hyper.action_weight,
  )


def numbers(**values) -> dict:
  """Settings of `config.algorithm`: distill_coef=1.0 -> algorithm.distill_coef."""
  return {f'algorithm.{name}': value for name, value in values.items()}


_SHARE = Range(at_most=1.0)
_POSITIVE = Range(above=0.0)
_BAND = Range(above=0.0, at_most=1.0)  # At 0 the teacher could move nothing.

SDAR = Distillation(
  'skills',
  gate=_selected_gate,
  losses=_gated_losses,
  advantages=_gated_advantages,
)
SDAR_ADVANTAGE = dataclasses.replace(SDAR, settings=numbers(distill_form='advantage'))
SDAR_CENTRED = dataclasses.replace(
  SDAR, settings=numbers(gate_centred=True, gap_clip=1.0, ratio_limit=2.0)
)
UNGATED = dataclasses.replace(SDAR, control=True, settings=numbers(gate_beta=0.0))
OPSD = Distillation(
  'skills',
  losses=_divergence,
  whole_distribution=True,
  settings=numbers(
    distill_coef=1.0,
    divergence='forward_kl',
    token_clip=0.05,
    teacher_weights='initial',
  ),
)
OPSD_SAMPLED = Distillation(
  'skills', losses=_sampled_opsd, settings=numbers(distill_coef=1.0, gap_clip=5.0)
)
SDPG = Distillation('skills', losses=_divergence, whole_distribution=True)
SDPO = Distillation(
  'sibling',
  losses=_divergence,
  whole_distribution=True,
  settings=numbers(distill_coef=1.0, topk=20, teacher_weights='ema'),
)
RLSD = Distillation(
  'skills',
  credit=_rlsd_credit,
  ranges={'distill_coef': _SHARE, 'credit_clip': _BAND},
  settings=numbers(distill_coef=0.5, warmdown_steps=100),
)
SKILL_SD = Distillation(
  'skills', losses=_k3, settings=numbers(distill_coef=0.001, warmdown_steps=100)
)
AGENT_OPSD = Distillation(
  'skills',
  credit=_belief_credit,
  ranges={'distill_coef': _SHARE, 'credit_clip': _BAND},
  settings=numbers(distill_coef=0.5),
)
OPID = Distillation('feedback', credit=_added_gap, settings=numbers(distill_coef=0.001))
GRSD = Distillation(
  'contrast',
  credit=_contrast_credit,
  ranges={'distill_coef': _SHARE, 'credit_clip': _POSITIVE},
  settings=numbers(distill_coef=0.5, credit_clip=3.0),
)
ADRS = Distillation(
  'skills',
  step_gate=_usefulness,
  rewards=_teacher_rewards,
  settings=numbers(distill_coef=0.05),
)
UCOB = Distillation(
  'other_view',
  gate=_two_view_gate,
  losses=_two_view_losses,
  weights=_view_weights,
  ranges={'view_weight_cap': _POSITIVE},
  settings=numbers(distill_coef=0.1, action_weight=2.0),
)
