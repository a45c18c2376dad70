"""The configuration that a run recorded, read back. No JAX."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.process import shipped
from sdar_jax.storage.workdir import WorkdirError

_log = logging.getLogger(__name__)
_REMEDY = 'give --config=FILE.py as well'
_SHOWN = 3  # Keys of another version that an error or a warning names.


def is_run(path: pathlib.Path) -> bool:
  """Tells the directory of a run from that of a model."""
  return (path / 'checkpoints').is_dir() or (path / 'metrics.jsonl').is_file()


def read(run: pathlib.Path) -> ml_collections.ConfigDict:
  """Reads the configuration of a run, wherever the run lies now.

  A key that the run's version did not have yet takes its default, and a warning says
  so. A relative path that leads nowhere from here is looked for from the directories
  above the run, as it was written where the run began.

  Args:
    run: the work directory.

  Returns:
    The configuration, not checked yet.

  Raises:
    WorkdirError: one line saying why this version cannot read it.
  """
  path = run / 'config.json'
  try:
    values = files.read_json(path)
    world = values.get('world.name')
    if not isinstance(world, str):
      raise WorkdirError(f'{path}: not the configuration of a run; {_REMEDY}')
    config = config_lib.default(world)
  except files.FileError as error:
    raise WorkdirError(f'{error}; {_REMEDY}') from None
  except ValueError as error:
    raise WorkdirError(f'{path}: {files.one_line(error)}; {_REMEDY}') from None
  known = config_lib.flatten(config)
  unknown = sorted(set(values) - set(known))
  if unknown:
    raise WorkdirError(
      f'{path}: of another version: this one has no {_named(unknown)}; {_REMEDY}'
    )
  missing = sorted(set(known) - set(values))
  if missing:
    _log.warning('%s: of an earlier version: %s: at the default', path, _named(missing))
  _set(config, values, path)
  for key in config_lib.path_keys(config):
    room, _, leaf = key.rpartition('.')
    config[room][leaf] = _found(config[room][leaf], run)
  return config.lock()


def _named(keys: list[str]) -> str:
  more = len(keys) - _SHOWN
  said = ', '.join(f'config.{key}' for key in keys[:_SHOWN])
  return said + (f' and {more} more' if more > 0 else '')


def _set(
  config: ml_collections.ConfigDict, values: Mapping[str, Any], path: pathlib.Path
) -> None:
  """Sets what differs, so that what follows another key still does."""
  first = 'rollout.success_reward'  # Which others follow.
  for key in sorted(values, key=lambda key: key != first):
    room, _, leaf = key.rpartition('.')
    place = config[room] if room else config
    value = values[key]
    if isinstance(place[leaf], tuple) and isinstance(value, list):
      value = tuple(value)
    try:
      if place[leaf] != value:
        place[leaf] = value
    except TypeError as error:
      raise WorkdirError(
        f'{path}: config.{key}={value!r}: {files.one_line(error)}; {_REMEDY}'
      ) from None


def _found(text: str, run: pathlib.Path) -> str:
  """Finds a relative path from here or from above the run."""
  if not text or os.path.isabs(text) or os.path.exists(shipped.find(text)):
    return text
  places = (parent / text for parent in run.absolute().parents)
  return str(next(filter(os.path.exists, places), text))
