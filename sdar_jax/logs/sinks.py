"""Sends a run's numbers to trackers, offline by default. No JAX.

`writers.MetricsWriter` hands each the finite numbers of a step. A tracker that is not
installed is refused before anything begins; one that fails later, be it at its start,
costs its own numbers and never the run.
"""

import contextlib
import importlib
import io
import json
import logging
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from sdar_jax import files
from sdar_jax.relations import trackers

_log = logging.getLogger(__name__)
# What of each package is used; which tells it from a directory of that name.
_PACKAGES = {
  'tensorboard': ('tensorboardX', 'SummaryWriter'),
  'wandb': ('wandb', 'init'),
  'trackio': ('trackio', 'init'),
}
# By which trackio would send what it is given elsewhere.
_TRACKIO_ONLINE = ('TRACKIO_SPACE_ID', 'TRACKIO_SERVER_URL')


class TrackerConfig(Protocol):
  """Interface of `config.log` as used here."""

  trackers: str
  project: str
  online: bool


def check(log: TrackerConfig) -> None:
  """Checks that the packages of a config's trackers are installed.

  Raises:
    ValueError: one is not; one line with the command that installs it.
  """
  for name in trackers(log.trackers):
    _package(name)


def make(
  directory: pathlib.Path,
  resume_step: int | None,
  log: TrackerConfig,
  values: Mapping[str, Any],
) -> list[Any]:
  """Makes the trackers of a run; one that fails is left out and said.

  Args:
    directory: of the run.
    resume_step: that it goes on from, or None.
    log: `config.log`.
    values: the flattened config.
  """
  kinds = {
    'tensorboard': lambda: TensorBoardSink(directory / 'tensorboard', resume_step),
    'wandb': lambda: WandbSink(log, directory, values, resume_step),
    'trackio': lambda: TrackioSink(log, directory, values, resume_step),
  }
  out: list[Any] = []
  for name in trackers(log.trackers):
    try:
      out.append(kinds[name]())
    except Exception as error:  # Other people's code and services.
      why = files.one_line(error)
      _log.warning('config.log.trackers: %s is left out: %s', name, why)
  return out


def _package(name: str) -> Any:
  """Imports the optional package of a tracker."""
  module, attribute = _PACKAGES[name]
  try:
    package = importlib.import_module(module)
    getattr(package, attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f"config.log.trackers={name!r} needs {module}: pip install 'sdar-jax[track]', or"
      ' leave it out'
    ) from error
  return package


class TensorBoardSink:
  """Writes TensorBoard scalars; needs the extra `track`."""

  def __init__(self, directory: str | os.PathLike, resume_step: int | None):
    package = _package('tensorboard')
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
  """Logs to Weights & Biases: to files of its own, or with an account.

  Without `config.log.online` it writes under wandb/ of the work directory what
  `wandb sync` sends later. A run's id there is random and stands in wandb.json of its
  work directory: a resumed run goes on with it, one that starts anew gets another.

  Args:
    log: `config.log`.
    directory: the work directory.
    config: the run's configuration, flat.
    resume_step: the step of the checkpoint that was restored; None starts afresh.

  Raises:
    ValueError: wandb.json is damaged.
  """

  def __init__(
    self,
    log: TrackerConfig,
    directory: str | os.PathLike,
    config: Mapping[str, Any],
    resume_step: int | None,
  ):
    directory = pathlib.Path(directory).absolute()
    path = directory / 'wandb.json'
    name = _identity(path, resume_step)
    self._run = _package('wandb').init(
      project=log.project,
      dir=os.fspath(directory),
      config=dict(config),
      id=name,
      name=_title(directory),
      resume='allow',
      mode='online' if log.online else 'offline',
    )
    _keep(path, name)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Flushes and closes."""
    self._run.finish()


class TrackioSink:
  """Logs to trackio: where it keeps its projects on this machine.

  With `config.log.online`, where its own TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says.

  Args: as of `WandbSink`; the identity is in trackio.json.
  """

  def __init__(
    self,
    log: TrackerConfig,
    directory: str | os.PathLike,
    config: Mapping[str, Any],
    resume_step: int | None,
  ):
    self._package = _package('trackio')
    directory = pathlib.Path(directory).absolute()
    path = directory / 'trackio.json'
    name = _identity(path, resume_step)
    with _without(() if log.online else _TRACKIO_ONLINE), _quiet():
      self._package.init(
        project=log.project,
        name=f'{_title(directory)} {name[:8]}',
        config=dict(config),
        resume='allow',
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
      )
    _keep(path, name)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""
    self._package.log(dict(values), step=step)

  def close(self) -> None:
    """Flushes and closes."""
    with _quiet():
      self._package.finish()  # Not the run's own, which its exit would repeat.


def _quiet() -> contextlib.AbstractContextManager[Any]:
  """Drops what a package prints between the lines of a run."""
  return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
  """Hides variables of the environment."""
  hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
  try:
    yield
  finally:
    os.environ.update(hidden)


def _title(directory: pathlib.Path) -> str:
  """Names a run for people; it need not be unique."""
  return '/'.join(directory.parts[-2:])


def _identity(path: pathlib.Path, resume_step: int | None) -> str:
  """Reads the identity of a run that goes on, or draws one."""
  stored = _stored_id(path) if resume_step is not None else None
  return stored or secrets.token_hex(8)


def _keep(path: pathlib.Path, name: str) -> None:
  files.write_atomic(path, (json.dumps({'id': name}) + '\n').encode())


def _stored_id(path: pathlib.Path) -> str | None:
  if not path.exists():
    return None
  name = files.read_json(path).get('id')
  if not (isinstance(name, str) and name):
    raise ValueError(f'{path}: id {name!r} is no identity of a run: delete the file')
  return name
