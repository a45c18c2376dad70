"""The two places where the parts of a method meet.

`assign_credit` runs on the host over a whole step, after scoring and before the first
update: advantages of every token. `policy_objective` runs jitted on the device: the
scalar of a minibatch. Both read a row of the table in `algorithms` and never ask which
method it is. Numbers live in `LossConfig`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.advantages.baselines import uniform_credit
from sdar_jax.losses import distill, masked, policy
from sdar_jax.losses import value as value_lib
from sdar_jax.methods import gates, schedules
from sdar_jax.methods.hyperparameters import LossConfig
from sdar_jax.methods.interface import Algorithm, Distillation, LossInputs, StepData


def assign_credit(
  algorithm: Algorithm, hyper: LossConfig, data: StepData
) -> dict[str, np.ndarray]:
  r"""What a step's rows are trained with, from their rewards and scores.

  \[ A_{it} = A_i \text{ or } A_{it}, \text{ then the teacher's credit} \]

  Args:
    algorithm: the method.
    hyper: its hyperparameters.
    data: the whole step, so that statistics and schedules see all of it.

  Returns:
    `advantages` [B, R] f32, `teaching` [B] f32, `gate_mean` and `distill_scale` [] f32,
    with a critic `value_targets` [B, R] f32, and `gate` [B, R] f32 and `action_mask` if
    there are such; see `LossInputs`.

  Raises:
    ValueError: a reward that is not finite.
  """
  mask = data.response_mask
  scale = schedules.linear_warmdown(
    data.step, value=1.0, warmdown_steps=hyper.warmdown_steps
  )
  coef = hyper.distill_coef * float(scale)
  distillation = algorithm.distillation if algorithm.needs_teacher(hyper) else None
  if distillation is not None:
    data = data._replace(gate=_old_gate(distillation, hyper, data))
  data = _with_token_rewards(algorithm, hyper, data, distillation, coef)
  advantages = np.asarray(algorithm.advantages(data, hyper), np.float32)
  if advantages.ndim == 1:
    advantages = uniform_credit(advantages, mask)
  teaching, gate_mean = np.zeros(len(mask)), 0.0
  if distillation is not None:
    teaching = data.taught.astype(float)
    if distillation.weights is not None:
      teaching = teaching * distillation.weights(data, hyper)
    if distillation.credit is not None:
      advantages = distillation.credit(advantages, data, hyper, coef)
    if data.gate is not None and data.taught_mask.any():
      gate_mean = data.gate[data.taught_mask].mean()
  out = {
    'advantages': advantages,
    'teaching': teaching,
    'gate_mean': gate_mean,
    'distill_scale': scale,
  }
  if data.gate is not None:
    out['gate'] = data.gate
  if algorithm.has_critic:
    out['value_targets'] = algorithm.value_targets(data, hyper)
  out = {name: np.asarray(value, np.float32) for name, value in out.items()}
  if data.action_mask is not None:
    out['action_mask'] = data.action_mask
  return out


def _old_gate(
  distillation: Distillation, hyper: LossConfig, data: StepData
) -> np.ndarray | None:
  """[B, R] the gate before the step's updates, 0 where nothing is taught, or None."""
  if distillation.step_gate is not None:
    gate = distillation.step_gate(data, hyper)
  elif distillation.gate is not None:
    gate = gates.apply(distillation.gate(hyper), data.gate_inputs, hyper)
  else:
    return None
  return np.where(data.taught_mask, gate, 0.0)


def _with_token_rewards(
  algorithm: Algorithm,
  hyper: LossConfig,
  data: StepData,
  distillation: Distillation | None,
  coef: float,
) -> StepData:
  """With rewards of tokens; in the scores where the method does not look at tokens."""
  parts = []
  if hyper.kl_in == 'reward' and hyper.kl_coef:
    parts.append(-hyper.kl_coef * np.where(data.response_mask, data.old_kl, 0.0))
  if distillation is not None and distillation.rewards is not None:
    parts.append(distillation.rewards(data, hyper, coef))
  if not parts:
    return data
  rewards = sum(parts)
  if algorithm.rewards_tokens:
    return data._replace(token_rewards=rewards)
  return data._replace(scores=data.scores + rewards.sum(1))


def policy_objective(
  algorithm: Algorithm, hyper: LossConfig, inputs: LossInputs
) -> tuple[jax.Array, masked.Metrics]:
  r"""The scalar to minimise and its metrics, for a minibatch or a part of one.

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
    metrics |= _teacher_metrics(inputs, hyper)
    coef = hyper.distill_coef * inputs.distill_scale
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


def _kl_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return policy.kl_penalty(
    inputs.logprobs, inputs.ref_logprobs, inputs.response_mask, kind=hyper.kl_kind
  )


def _with_live_gate(
  distillation: Distillation, hyper: LossConfig, inputs: LossInputs
) -> LossInputs:
  """With the current policy's gate, unless the step's own is what trains."""
  if distillation.gate is None or distillation.in_advantages(hyper):
    return inputs
  gate = gates.apply(distillation.gate(hyper), inputs.gate_inputs, hyper)
  return inputs._replace(gate=jax.lax.stop_gradient(gate))


def _teacher_metrics(inputs: LossInputs, hyper: LossConfig) -> masked.Metrics:
  """The gap's, and the gate's where the method has one."""
  mask = inputs.taught_mask
  metrics = distill.gap_metrics(inputs.gap, mask, inputs.response_mask, inputs.turn_ids)
  if inputs.gate is not None:
    coef = hyper.distill_coef
    metrics |= distill.gate_metrics(inputs.gate, mask, distill_coef=coef)
  return metrics


def _value_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return value_lib.value_loss(
    inputs.values,
    inputs.old_values,
    inputs.value_targets,
    inputs.response_mask,
    value_clip=hyper.value_clip,
  )
