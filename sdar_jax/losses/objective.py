"""The objective: terms of a method's row, summed to one scalar."""

import jax
import jax.numpy as jnp

from sdar_jax.losses import distill, masked, policy
from sdar_jax.losses import value as value_lib
from sdar_jax.losses.inputs import LossInputs
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm, Distillation


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
  metrics = distill.gap_metrics(inputs.gap, mask, inputs.response_mask, inputs.turn_ids)
  if inputs.gate is not None:
    coef = distillation.weight(hyper)
    metrics |= distill.gate_metrics(inputs.gate, mask, distill_coef=coef)
  return metrics


def _value_losses(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  return value_lib.value_loss(
    inputs.values,
    inputs.old_values,
    inputs.value_targets,
    inputs.response_mask,
    value_clip=hyper.value_clip,
  )
