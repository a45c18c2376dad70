"""The directory of one run: its lock and its configuration.

No JAX: a second run in the same directory is refused before anything heavy is loaded.
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from sdar_jax import config as config_lib
from sdar_jax import files

_log = logging.getLogger(__name__)

# Keys and sections that may change between two starts of one run, because no trained
# number depends on them: how long, how it is watched, and how often it is saved.
HARMLESS = ('steps', 'pool', 'hosts', 'eval', 'checkpoint', 'log', 'export')

_ABSENT = '(absent)'


class WorkdirError(ValueError):
  """An unusable work directory: one line with reason and remedy."""


class Workdir:
  """Holds a work directory for one run; use it as a context manager.

  On entry the directory is made and locked (the kernel frees the lock however the
  process ends), and its `config.json` compared if it is there; `record` writes it.

  Args:
    path: the directory.
    config: the run's configuration.
    harmless: keys or sections that may differ from those the run was started with.
    leads: this process holds and writes it; another one of the same run only reads.

  Raises (on entry):
    WorkdirError: the directory is held by another run or cannot be one, or its
      config.json is damaged or differs in a key that is not harmless.
    files.DiskError: the disk refuses to make it.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    config: ml_collections.ConfigDict,
    harmless: tuple[str, ...] = HARMLESS,
    *,
    leads: bool = True,
  ):
    self.path = pathlib.Path(path).absolute()
    # Through JSON, so that what is compared later is exactly what is stored.
    self._values = json.loads(json.dumps(config_lib.flatten(config)))
    self._harmless, self._leads = harmless, leads
    self._lock: int | None = None

  @property
  def holder(self) -> str:
    """Reads who holds the directory: the same where all see the same one."""
    try:
      return (self.path / '.lock').read_text(errors='replace')
    except OSError as error:
      return files.one_line(error)

  @property
  def digest(self) -> str:
    """Hex SHA-256 of the configuration without its harmless keys."""
    fixed = {k: v for k, v in self._values.items() if not self._is_harmless(k)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

  def __enter__(self) -> 'Workdir':
    try:
      if self._leads:
        with files.writing(self.path):
          self.path.mkdir(parents=True, exist_ok=True)
          self._lock = files.lock(self.path / '.lock', self._refuse)
      self._compare()
    except files.DiskError:
      self._release()
      raise
    except OSError as error:
      self._release()
      raise WorkdirError(
        f'workdir {self.path}: {files.one_line(error)}; choose another directory'
      ) from error
    except WorkdirError:
      self._release()
      raise
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._release()

  def _release(self) -> None:
    if self._lock is not None:
      files.unlock(self._lock)
      self._lock = None

  def _refuse(self, holder: str) -> None:
    raise WorkdirError(
      f'workdir {self.path} is in use by {holder}: stop that run or choose another'
      ' workdir'
    )

  def _is_harmless(self, key: str) -> bool:
    return any(key == name or key.startswith(f'{name}.') for name in self._harmless)

  def _compare(self) -> None:
    path = self.path / 'config.json'
    if not path.exists():
      return
    changed = _difference(_read_config(path), self._values)
    harmful = {k: v for k, v in changed.items() if not self._is_harmless(k)}
    if harmful:
      raise WorkdirError(
        f'workdir {self.path}: its run was started with another configuration:'
        f' {_describe(harmful)}; restore the values or choose another workdir'
      )
    if changed:
      _log.info('workdir %s: changed on resume: %s', self.path, _describe(changed))

  def record(self) -> None:
    """Writes config.json: the directory now belongs to this configuration.

    Called when the parts of a run stand, so that wrong input leaves no trace.
    """
    if not self._leads:
      return
    text = json.dumps(self._values, indent=1, sort_keys=True) + '\n'
    files.write_atomic(self.path / 'config.json', text.encode())


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  try:
    return files.read_json(path)
  except files.FileError as error:
    raise WorkdirError(f'{error}: restore it or choose another workdir') from error


def _difference(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Lists differing keys: {key: (old, new)}."""
  return {
    key: (old.get(key, _ABSENT), new.get(key, _ABSENT))
    for key in sorted({*old, *new})
    if key not in old or key not in new or old[key] != new[key]
  }


def _describe(changed: Mapping[str, tuple[Any, Any]], limit: int = 5) -> str:
  pairs = list(changed.items())
  shown = [f'{key} was {old!r}, is {new!r}' for key, (old, new) in pairs[:limit]]
  more = len(pairs) - len(shown)
  return '; '.join(shown) + (f'; and {more} more' if more else '')
