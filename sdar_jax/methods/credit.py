"""Credit assignment: rewards and scores to advantages. No JAX.

It runs on the host over a whole step, after scoring and before the first update.
"""

import numpy as np

from sdar_jax.advantages.grpo import uniform_credit
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm, Distillation, StepData


def assign_credit(
  algorithm: Algorithm, hyper: Hyperparameters, data: StepData
) -> dict[str, np.ndarray]:
  r"""Assigns advantages and distillation weights to a step's rows.

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
  scale = _warmdown(data.step, hyper.warmdown_steps) * data.memory.get('share', 1.0)
  distillation = algorithm.distillation if algorithm.needs_teacher(hyper) else None
  coef = 0.0
  if distillation is not None:
    coef = distillation.weight(hyper) * scale
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


def remembered(
  algorithm: Algorithm, hyper: Hyperparameters, data: StepData
) -> dict[str, float]:
  """Collects what the method's later steps shall know of this one."""
  if not algorithm.needs_teacher(hyper) or algorithm.distillation.remember is None:
    return {}
  return algorithm.distillation.remember(data, hyper)


def _warmdown(step: int, steps: int) -> float:
  """Computes the teacher's share: max(0, 1 - k/W), or 1 where W is 0.

  Source: RLSD (arXiv 2604.03128) and Skill-SD (arXiv 2604.10674) as released:
    verl/trainer/ppo/{rlsd,skillsd}_utils.py of ZJU-REAL/SDAR@8b85c23 (W = 100). Without
    a warm-down Skill-SD is constant there (W = -1), and so is this; RLSD is 0 at every
    step.
  """
  return max(0.0, 1.0 - step / steps) if steps else 1.0


def _old_gate(
  distillation: Distillation, hyper: Hyperparameters, data: StepData
) -> np.ndarray | None:
  """Computes the gate before the updates, [B, R]; 0 where untaught."""
  if distillation.step_gate is not None:
    gate = distillation.step_gate(data, hyper)
  elif distillation.gate is not None:
    gate = gates.apply(distillation.gate(hyper), data.gate_inputs, hyper)
  else:
    return None
  return np.where(data.taught_mask, gate, 0.0)


def _with_token_rewards(
  algorithm: Algorithm,
  hyper: Hyperparameters,
  data: StepData,
  distillation: Distillation | None,
  coef: float,
) -> StepData:
  """Adds token rewards, or their sums to scores where no token is read."""
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
