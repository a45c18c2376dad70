"""Inputs of a run, equal from start to end. No JAX."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Input(NamedTuple):
  """Words for an input.

  Attributes:
    name: of one.
    several: of those that differ among runs compared; '' where that is no news.
  """

  name: str
  several: str = ''


# By key in host.json and run.json.
INPUTS = {
  'seed': Input('config.seed'),
  'config_digest': Input('the configuration'),
  'world_digest': Input('the world (config.world and its data)'),
  'model_digest': Input('the model (config.model.path)', 'initial models'),
  'tokenizer_digest': Input(
    'the tokenizer or its chat template (config.model.tokenizer)', 'tokenizers'
  ),
  # Of runs that have one.
  'teacher_digest': Input('the given teacher (config.model.teacher)', 'given teachers'),
  'skills_digest': Input('the skill bank (config.skills.path)', 'skill banks'),
  'numerics': Input('what JAX is told by JAX_* and XLA_FLAGS', 'numerics'),
}


class InputError(ValueError):
  """An input that differs from a checkpoint's, in one line."""


def check(
  saved: Mapping[str, Any], inputs: Mapping[str, Any], step: int, path: pathlib.Path
) -> None:
  """Compares a checkpoint's inputs with those of a run.

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
        f'{path}: {INPUTS[key].name} is not what checkpoint {step} was trained with:'
        f' {key} was {saved[key]}, is {value}; restore it or use another workdir'
      )
