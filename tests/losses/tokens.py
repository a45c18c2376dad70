"""What the objective reads, made of a few arrays; the rest is absent."""

import dataclasses

import numpy as np

from sdar_jax.losses import masked, objective
from sdar_jax.losses.objective import LossInputs
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.table import find

NOTHING = {'policy_coef': 0.0, 'kl_coef': 0.0, 'entropy_coef': 0.0, 'distill_coef': 0.0}


def loss_inputs(mask, hyper, **arrays):
  """Inputs of rows that are all taught, at the step's start of a schedule."""
  rows = mask.shape[0]
  known = {
    'logprobs': arrays.get('old_logprobs'),
    'entropy': 0.0 * mask,
    'advantages': 0.0 * mask,
    'teaching': np.ones(rows, np.float32),
    'turn_ids': np.zeros(rows, np.int32),
    'gate_mean': np.float32(0.5),
    'distill_scale': np.float32(1),
  }
  normaliser = masked.normaliser_of(mask, hyper.aggregation, length=mask.shape[1])
  known |= {'response_mask': mask, 'normaliser': normaliser} | arrays
  return LossInputs(**(dict.fromkeys(LossInputs._fields) | known))


def objective_of(name, mask, arrays, quiet=False, **numbers):
  """logprobs -> (loss, metrics) of a method whose other terms are off."""
  hyper, row = Hyperparameters(**{**NOTHING, **numbers}), find(name)
  if quiet:  # Half of the work where nothing is compiled.
    row = dataclasses.replace(row, policy_metrics=lambda *arguments: {})

  def scalar(logprobs):
    entropy = 0.0 * logprobs
    inputs = loss_inputs(mask, hyper, **{'entropy': entropy, **arrays})
    inputs = inputs._replace(logprobs=logprobs)
    return objective.policy_objective(row, hyper, inputs)

  return scalar


def means(metrics):
  """Sums over counts; 0 where nothing was counted."""
  return {name: value / count.clip(1) for name, (value, count) in metrics.items()}


def sdar_term(mask, teacher, **numbers):
  """logprobs -> the mean of SDAR's term over tokens, as the objective trains it."""
  arrays = {'old_logprobs': teacher, 'teacher_logprobs': teacher}
  numbers = {'distill_coef': 1.0, **numbers}
  scalar = objective_of('sdar', mask, arrays, quiet=True, **numbers)
  return lambda logprobs: scalar(logprobs)[0]
