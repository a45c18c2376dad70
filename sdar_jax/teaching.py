"""The teachers' sides of methods: what a privileged self teaches, and how.

Each constant is a `Distillation` of pure functions from `losses/`, with the settings
its paper or released code runs with. Rows of `algorithms.ALGORITHMS` name them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.hyperparameters import LossConfig
from sdar_jax.losses import advantages as advantages_lib
from sdar_jax.losses import (
  credit,
  distill,
  gates,
  masked,
  shaping,
  two_views,
)
from sdar_jax.objective import Distillation, LossInputs, StepData

GAP_TURNS = 50  # Bins of the gap by turn: the paper's longest episode.


def _live_gap(inputs: LossInputs) -> jax.Array:
  return distill.gap(inputs.logprobs, inputs.teacher_logprobs, inputs.taught_mask)


def _gate(gap, entropy, mask, hyper: LossConfig) -> jax.Array:
  """The gate that `hyper.gate` names."""
  if hyper.gate == 'entropy':
    return gates.entropy_gate(entropy, mask, gate_beta=hyper.gate_beta)
  clip = hyper.gap_clip or math.inf
  if hyper.gate == 'soft_or':
    entropy = jnp.minimum(entropy, 1.0)  # Beyond 1 nat it would be no `or`.
    gap = jnp.clip(gap, -clip, clip)
    return gates.soft_or_gate(entropy, gap, mask, gate_beta=hyper.gate_beta)
  return gates.clipped_gate(gap, gate_beta=hyper.gate_beta, gap_clip=clip)


def _live_gate(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  """[B, T] the gate under the current policy, uncentred."""
  entropy = jax.lax.stop_gradient(inputs.entropy)
  return _gate(_live_gap(inputs), entropy, inputs.taught_mask, hyper)


def _gated_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  mask = inputs.taught_mask
  weights = _live_gate(inputs, hyper)
  if hyper.gate_centred:
    weights = gates.centred_gate(weights, mask, inputs.gate_mean)
  if hyper.ratio_limit:
    weights = distill.ratio_weights(
      weights,
      inputs.logprobs,
      inputs.old_logprobs,
      mask,
      ratio_limit=hyper.ratio_limit,
    )
  return distill.weighted(inputs.logprobs, inputs.teacher_logprobs, weights, mask)


def _gated_advantages(
  advantages: jax.Array, inputs: LossInputs, hyper: LossConfig, coef
) -> jax.Array:
  # Advantages are estimated before the step's updates, so this gap is the old one's.
  mask = inputs.taught_mask
  gap = distill.gap(inputs.old_logprobs, inputs.teacher_logprobs, mask)
  gate = _gate(gap, inputs.old_entropy, mask, hyper)
  if hyper.gate_centred:
    gate = gates.centred_gate(gate, mask, inputs.gate_mean)
  gate = jnp.where(mask, gate, 0.0) * inputs.teaching[:, None]
  return distill.gate_advantages(
    advantages, gate, inputs.response_mask, distill_coef=coef
  )


def _gap_metrics(inputs: LossInputs, hyper: LossConfig) -> masked.Metrics:
  gap, mask = _live_gap(inputs), inputs.taught_mask
  by_turn = distill.gap_by_turn(gap, mask, inputs.turn_ids, num_turns=GAP_TURNS)
  return {
    'gap': masked.total(gap, mask),
    'gap_positive': masked.total(gap > 0, mask),
    'gap_by_turn': by_turn,
    'taught': masked.total(mask, inputs.response_mask),
  }


def _gate_metrics(inputs: LossInputs, hyper: LossConfig) -> masked.Metrics:
  metrics = distill.gate_metrics(
    _live_gap(inputs),
    _live_gate(inputs, hyper),
    inputs.taught_mask,
    distill_coef=hyper.distill_coef,
  )
  return metrics | _gap_metrics(inputs, hyper)


def _divergence(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return jnp.where(inputs.taught_mask, inputs.divergence, 0.0)


def _sampled_opsd(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return distill.opsd(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.taught_mask,
    gap_clip=hyper.gap_clip or math.inf,
  )


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


def _rlsd_credit(advantages, data: StepData, hyper: LossConfig, coef: float):
  return _reshaped(
    lambda row: advantages_lib.rlsd_credit(
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


def _added_gap(advantages, data: StepData, hyper: LossConfig, coef: float):
  return credit.opid_credit(
    advantages,
    data.gap,
    data.response_mask,
    data.taught,
    weight=coef,
    gap_clip=hyper.gap_clip or None,
  )


def _token_rewards(advantages, data: StepData, hyper: LossConfig, coef: float):
  mask = data.response_mask & data.taught[:, None]
  rewards = shaping.teacher_rewards(data.teacher_logprobs, mask, baseline='batch')
  value = shaping.teacher_value(
    data.teacher_logprobs,
    mask,
    data.scores,
    data.group_ids,
    temperature=1.0,
    mean_over='rows',
  )
  gate = shaping.value_gate(value, mask, gate_scale=hyper.gate_scale)
  return shaping.shaped_rewards(advantages, rewards, gate, shaping_coef=coef)


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


def _two_view_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  plain = inputs.action_mask is None  # Where action_weight is 1, every token is alike.
  return two_views.two_view_distillation(
    inputs.logprobs,
    inputs.teacher_logprobs,
    jnp.ones_like(inputs.teaching),  # The objective weighs the rows.
    inputs.response_mask if plain else inputs.action_mask,
    inputs.taught_mask,
    gate_beta=hyper.gate_beta,
    action_weight=hyper.action_weight,
  )


def numbers(**values) -> dict:
  """Settings of `config.algorithm`: distill_coef=1.0 -> algorithm.distill_coef."""
  return {f'algorithm.{name}': value for name, value in values.items()}


SDAR = Distillation('skills', _gate_metrics, _gated_losses, _gated_advantages)
SDAR_ADVANTAGE = Distillation(
  'skills',
  _gate_metrics,
  _gated_losses,
  _gated_advantages,
  settings=numbers(distill_form='advantage'),
)
SDAR_CENTRED = Distillation(
  'skills',
  _gate_metrics,
  _gated_losses,
  _gated_advantages,
  settings=numbers(gate_centred=True, gap_clip=1.0, ratio_limit=2.0),
)
UNGATED = Distillation(
  'skills',
  _gate_metrics,
  _gated_losses,
  _gated_advantages,
  settings=numbers(gate_beta=0.0),
)
OPSD = Distillation(
  'skills',
  _gap_metrics,
  _divergence,
  whole_distribution=True,
  settings=numbers(
    distill_coef=1.0,
    divergence='forward_kl',
    token_clip=0.05,
    teacher_weights='initial',
  ),
)
OPSD_SAMPLED = Distillation(
  'skills',
  _gap_metrics,
  _sampled_opsd,
  settings=numbers(distill_coef=1.0, gap_clip=5.0),
)
SDPG = Distillation(
  'skills', _gap_metrics, _divergence, whole_distribution=True, settings={}
)
SDPO = Distillation(
  'sibling',
  _gap_metrics,
  _divergence,
  whole_distribution=True,
  settings=numbers(distill_coef=1.0, topk=20, teacher_weights='ema'),
)
RLSD = Distillation(
  'skills',
  _gap_metrics,
  credit=_rlsd_credit,
  settings=numbers(distill_coef=0.5, warmdown_steps=100),
)
SKILL_SD = Distillation(
  'skills', _gap_metrics, _k3, settings=numbers(distill_coef=0.001, warmdown_steps=100)
)
AGENT_OPSD = Distillation(
  'skills', _gap_metrics, credit=_belief_credit, settings=numbers(distill_coef=0.5)
)
OPID = Distillation(
  'feedback', _gap_metrics, credit=_added_gap, settings=numbers(distill_coef=0.001)
)
GRSD = Distillation(
  'contrast',
  _gap_metrics,
  credit=_contrast_credit,
  settings=numbers(distill_coef=0.5, credit_clip=3.0),
)
ADRS = Distillation(
  'skills', _gap_metrics, credit=_token_rewards, settings=numbers(distill_coef=0.05)
)
UCOB = Distillation(
  'other_view',
  _gap_metrics,
  _two_view_losses,
  weights=_view_weights,
  settings=numbers(distill_coef=0.1, action_weight=2.0),
)
