"""The objective: its inputs, the terms of GRPO and SDAR, and their sum.

`terms` has those of other methods. Rows of `methods.table` name these functions with
the numbers that each reads.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdar_jax.losses import distill, masked, measures, policy, variants
from sdar_jax.losses import value as value_lib
from sdar_jax.losses.masked import Array
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm, Distillation

TOKEN_CLIPS = ('clip_low', 'clip_high', 'dual_clip')


class LossInputs(NamedTuple):
  """Inputs of the objective; gradients reach the first four fields only.

  Attributes:
    logprobs: [B, T] float, nats, of the current policy.
    entropy: [B, T] float, nats, of the current policy.
    values: [B, T] float, return units, of the current critic, or None.
    divergence: [B, T] float, nats, between the student's and the teacher's whole
      distributions, or None.
    old_logprobs: [B, T] float, nats, before this step's updates.
    ref_logprobs: [B, T] float, nats, or None where `needs_reference` is False.
    teacher_logprobs: [B, T] float, nats, or None where `needs_teacher` is False.
    contrast_logprobs: [B, T] float, nats, under the teacher's second context, or None.
    old_values: [B, T] float, return units, or None.
    advantages: [B, T] float, one per token.
    value_targets: [B, T] float, return units, or None.
    response_mask: [B, T] bool, True exactly on sampled tokens; all False on padding
      rows.
    action_mask: [B, T] bool, tokens after the thought, or None.
    teaching: [B] float, weight of the row's distillation term; 0 where the teacher
      saw nothing.
    turn_ids: [B] int, which turn of its episode a row is, from 0.
    gate: [B, T] in [0, 1], the method's before this step's updates, or None where it
      has none; where the gate weighs a loss, the objective puts the current policy's
      in its place.
    gate_mean: scalar, the step's mean gate before its updates.
    distill_scale: scalar, the schedule's factor on distill_coef.
    normaliser: scalar, `masked.normaliser_of` the whole minibatch's response_mask.
  """

  logprobs: Array
  entropy: Array
  values: Array | None
  divergence: Array | None
  old_logprobs: Array
  ref_logprobs: Array | None
  teacher_logprobs: Array | None
  contrast_logprobs: Array | None
  old_values: Array | None
  advantages: Array
  value_targets: Array | None
  response_mask: Array
  action_mask: Array | None
  teaching: Array
  turn_ids: Array
  gate: Array | None
  gate_mean: Array | float
  distill_scale: Array | float
  normaliser: Array | int

  @property
  def taught_mask(self) -> Array:
    """Selects response tokens of taught rows, [B, T] bool."""
    return self.response_mask & (self.teaching != 0)[:, None]

  @property
  def gap(self) -> jax.Array:
    """Computes `distill.gap` of the current policy, [B, T] nats."""
    return distill.gap(self.logprobs, self.teacher_logprobs, self.taught_mask)

  @property
  def gate_inputs(self) -> gates.GateInputs:
    """Collects what a gate looks at, under the current policy; no gradient."""
    turns = jnp.broadcast_to(self.turn_ids[:, None], self.taught_mask.shape)
    known = (self.entropy, self.logprobs, self.teacher_logprobs, turns)
    known = jax.lax.stop_gradient(masked.fill(self.taught_mask, *known))
    return gates.GateInputs(self.gap, *known)


def clipped_surrogate(
  inputs: LossInputs, advantages: jax.Array, hyper: Hyperparameters
) -> jax.Array:
  """Computes PPO's clipped surrogate, [B, T]."""
  return surrogate(policy.clipped_surrogate, inputs, advantages, hyper, TOKEN_CLIPS)


def clipped_metrics(
  inputs: LossInputs, advantages: jax.Array, hyper: Hyperparameters
) -> masked.Metrics:
  """Measures ratios and clips of tokens."""
  return surrogate(measures.surrogate_metrics, inputs, advantages, hyper, TOKEN_CLIPS)


def surrogate(
  function: Callable,
  inputs: LossInputs,
  advantages: jax.Array,
  hyper: Hyperparameters,
  clips: tuple[str, ...],
):
  """Calls a surrogate, or its metrics, with the clips that it takes."""
  return function(
    inputs.logprobs,
    inputs.old_logprobs,
    advantages,
    inputs.response_mask,
    **{name: getattr(hyper, name) for name in clips},
  )


def gated(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Computes SDAR's gated term, [B, T] nats."""
  mask, weights = inputs.taught_mask, inputs.gate
  if hyper.gate_centred:
    weights = variants.centred(weights, mask, inputs.gate_mean)
  if hyper.ratio_limit:
    weights = variants.ratio_weights(
      weights,
      inputs.logprobs,
      inputs.old_logprobs,
      mask,
      ratio_limit=hyper.ratio_limit,
    )
  return distill.weighted(inputs.logprobs, inputs.teacher_logprobs, weights, mask)


def policy_objective(
  algorithm: Algorithm, hyper: Hyperparameters, inputs: LossInputs
) -> tuple[jax.Array, masked.Metrics]:
  r"""Computes loss and metrics of a minibatch, or of a part of one.

  \[ L = c_{pg} L_{PG} - c_H H + c_{KL} L_{KL} + c_V L_V + \lambda_k L_{distill} \]

  each an `aggregate` with the minibatch's normaliser: losses, gradients and metrics
  of disjoint parts of a minibatch add up to those of the whole.

  Args:
    algorithm: the method.
    hyper: hyperparameters; its zero coefficients remove their terms.
    inputs: arrays; gradients reach `logprobs`, `entropy`, `values` and `divergence`.

  Returns:
    The loss (scalar) and metrics, name -> (sum, count). Loss terms are reported per
    token and before their coefficient, whatever the aggregation.

  Source: SDAR (arXiv 2605.15155); verl/workers/actor/dp_actor.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  mask = inputs.response_mask
  credit = jnp.where(mask, inputs.advantages, 0.0)
  metrics = {'advantage_abs': masked.total(jnp.abs(credit), mask)}
  metrics['entropy'] = masked.total(inputs.entropy, mask)
  terms, policy_coef, distillation = [], hyper.policy_coef, algorithm.distillation
  if algorithm.needs_teacher(hyper):
    inputs = _with_live_gate(distillation, hyper, inputs)
    metrics |= _teacher_metrics(distillation, hyper, inputs)
    coef = distillation.weight(hyper) * inputs.distill_scale
    if distillation.in_advantages(hyper):
      # The surrogate is homogeneous: its coefficient may move inside, even if it is 0.
      credit = distillation.advantages(policy_coef * credit, inputs, hyper, coef)
      policy_coef = 1.0
    elif distillation.losses is not None:
      losses = inputs.teaching[:, None] * distillation.losses(inputs, hyper)
      metrics['distill_loss'] = masked.total(losses, mask)
      terms.append((coef, losses))
  if policy_coef != 0:
    losses = algorithm.policy_loss(inputs, credit, hyper)
    metrics['policy_loss'] = masked.total(losses, mask)
    terms.append((policy_coef, losses))
  else:
    credit = jnp.zeros_like(credit)  # Without a surrogate no clip stops anything.
  metrics |= algorithm.policy_metrics(inputs, credit, hyper)
  if hyper.kl_coef != 0 and hyper.kl_in == 'loss':
    losses = _kl_losses(inputs, hyper)
    metrics['kl'] = masked.total(losses, mask)
    terms.append((hyper.kl_coef, losses))
  if hyper.entropy_coef != 0:
    terms.append((hyper.entropy_coef, policy.entropy_loss(inputs.entropy, mask)))
  if algorithm.has_critic:
    losses = _value_losses(inputs, hyper)
    metrics['value_loss'] = masked.total(losses, mask)
    terms.append((hyper.value_coef, losses))
  loss = jnp.zeros((), inputs.logprobs.dtype)
  for coef, losses in terms:
    loss += coef * masked.aggregate(losses, mask, inputs.normaliser, hyper.aggregation)
  return loss, metrics


def _kl_losses(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  return policy.kl_penalty(
    inputs.logprobs, inputs.ref_logprobs, inputs.response_mask, kind=hyper.kl_kind
  )


def _with_live_gate(
  distillation: Distillation, hyper: Hyperparameters, inputs: LossInputs
) -> LossInputs:
  """Puts in the current policy's gate, unless the step's own trains."""
  if distillation.gate is None or distillation.in_advantages(hyper):
    return inputs
  gate = gates.apply(distillation.gate(hyper), inputs.gate_inputs, hyper)
  return inputs._replace(gate=jax.lax.stop_gradient(gate))


def _teacher_metrics(
  distillation: Distillation, hyper: Hyperparameters, inputs: LossInputs
) -> masked.Metrics:
  """Measures the gap, and the gate where the method has one."""
  mask = inputs.taught_mask
  metrics = measures.gap_metrics(
    inputs.gap, mask, inputs.response_mask, inputs.turn_ids
  )
  if inputs.gate is not None:
    coef = distillation.weight(hyper)
    metrics |= measures.gate_metrics(inputs.gate, mask, distill_coef=coef)
  return metrics


def _value_losses(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  return value_lib.value_loss(
    inputs.values,
    inputs.old_values,
    inputs.value_targets,
    inputs.response_mask,
    value_clip=hyper.value_clip,
  )
