"""Inputs of a run, compared when it goes on. No JAX."""

import pathlib
from collections.abc import Mapping
from typing import Any

# Key in host.json and run.json -> the input, as its user knows it.
INPUTS = {
  'seed': 'config.seed',
  'config_digest': 'the configuration',
  'world_digest': 'the world (config.world and its data)',
  'model_digest': 'the model (config.model.path)',
  'tokenizer_digest': 'the tokenizer or its chat template (config.model.tokenizer)',
  'skills_digest': 'the skill bank (config.skills.path)',
  'numerics': 'what JAX is told by JAX_* and XLA_FLAGS',
}


class InputError(ValueError):
  """An input different from the checkpoint's, in one line."""


def check(
  saved: Mapping[str, Any], inputs: Mapping[str, Any], step: int, path: pathlib.Path
) -> None:
  """Compares a checkpoint's inputs with the present ones.

  Args:
    saved: the host's part of the checkpoint.
    inputs: some or all of `INPUTS`.
    step: of the checkpoint, for errors.
    path: of the run, for errors.

  Raises:
    InputError: they differ, or the checkpoint does not say.
  """
  for key, value in inputs.items():
    if key not in saved:
      raise InputError(
        f'{path}: checkpoint {step} has no {key}, an earlier version wrote it: train'
        ' again in another workdir'
      )
    if saved[key] != value:
      raise InputError(
        f'{path}: {INPUTS[key]} is not what checkpoint {step} was trained with: {key}'
        f' was {saved[key]}, is {value}; restore it or use another workdir'
      )
