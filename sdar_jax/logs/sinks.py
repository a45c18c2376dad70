"""Sends a run's numbers to TensorBoard or Weights & Biases. No JAX.

`writers.MetricsWriter` hands each the finite numbers of a step; a sink that fails once
training has begun costs its own numbers and never the run.
"""

import importlib
import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from sdar_jax import files


def check(*, tensorboard: bool, wandb: bool) -> None:
  """Checks that the packages of these sinks are installed.

  Raises:
    ValueError: one is not; one line with the command that installs it.
  """
  if tensorboard:
    _package('tensorboardX', 'SummaryWriter', 'config.log.tensorboard')
  if wandb:
    _package('wandb', 'init', 'config.log.wandb_project')


def make(
  directory: pathlib.Path,
  resume_step: int | None,
  *,
  tensorboard: bool,
  wandb_project: str,
  values: Mapping[str, Any],
) -> list[Any]:
  """Makes the sinks of a run besides the directory's own files.

  Args:
    directory: of the run.
    resume_step: that it goes on from, or None.
    tensorboard, wandb_project: of `config.log`.
    values: the flattened config.
  """
  out: list[Any] = []
  if tensorboard:
    out.append(TensorBoardSink(directory / 'tensorboard', resume_step))
  if wandb_project:
    out.append(WandbSink(wandb_project, directory, values, resume_step))
  return out


def _package(name: str, attribute: str, key: str) -> Any:
  """Imports an optional package; `attribute` tells it from a directory."""
  try:
    package = importlib.import_module(name)
    getattr(package, attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f"{key} needs {name}: pip install 'sdar-jax[track]', or unset it"
    ) from error
  return package


class TensorBoardSink:
  """Writes TensorBoard scalars; needs the extra `track`."""

  def __init__(self, directory: str | os.PathLike, resume_step: int | None):
    package = _package('tensorboardX', 'SummaryWriter', 'config.log.tensorboard')
    # What an earlier start logged beyond the step to resume from is played again.
    self._writer = package.SummaryWriter(
      os.fspath(directory), purge_step=(resume_step or 0) + 1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes."""
    self._writer.close()


class WandbSink:
  """Logs to Weights & Biases; needs the extra `track` and an account.

  A run's id there is random and stands in wandb.json of its work directory: a resumed
  run goes on with it, one that starts from the beginning gets another.

  Args:
    project: the project's name.
    directory: the work directory.
    config: the run's configuration, flat.
    resume_step: the step of the checkpoint that was restored; None starts afresh.

  Raises:
    ValueError: one line: the package is missing, the service refused, or wandb.json is
      damaged.
  """

  def __init__(
    self,
    project: str,
    directory: str | os.PathLike,
    config: Mapping[str, Any],
    resume_step: int | None,
  ):
    package = _package('wandb', 'init', 'config.log.wandb_project')
    directory = pathlib.Path(directory).absolute()
    path = directory / 'wandb.json'
    name = _stored_id(path) if resume_step is not None else None
    name = name or secrets.token_hex(8)
    try:
      self._run = package.init(
        project=project,
        dir=os.fspath(directory),
        config=dict(config),
        id=name,
        name='/'.join(directory.parts[-2:]),  # For people; it need not be unique.
        resume='allow',
      )
    except Exception as error:  # Not logged in, no network, no such project.
      raise ValueError(
        f'config.log.wandb_project={project!r}: {files.one_line(error)}; unset it to go'
        ' on without'
      ) from error
    files.write_atomic(path, (json.dumps({'id': name}) + '\n').encode())

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Flushes and closes."""
    self._run.finish()


def _stored_id(path: pathlib.Path) -> str | None:
  if not path.exists():
    return None
  name = files.read_json(path).get('id')
  if not (isinstance(name, str) and name):
    raise ValueError(f'{path}: id {name!r} is no W&B run id: delete the file')
  return name
