"""Writes JSON lines of steps: whole, in order, on disk. No JAX."""

import hashlib
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdar_jax import files

_log = logging.getLogger(__name__)
_SURROGATE = re.compile('[\ud800-\udfff]')


class JsonLines:
  """Holds a file of JSON lines with rising steps, cut back on opening.

  Args:
    path: of the file; made if it is not there.
    resume_step: the last step whose line is kept; None keeps none.
    digest: hex SHA-256 that the kept lines must have; None where it is not known.

  Raises:
    files.FileError: what is kept is damaged, or not what was written.
    files.DiskError: the disk refuses the file.
  """

  def __init__(self, path: pathlib.Path, resume_step: int | None, digest: str | None):
    self._path = path
    self._last, kept = _kept(path, resume_step)
    self._sha256 = hashlib.sha256(kept)
    if digest is not None and path.exists() and self._sha256.hexdigest() != digest:
      raise files.FileError(f'{path}: {files.CHANGED}')
    if digest is not None and not path.exists():
      _log.warning('%s is gone: it begins anew after step %s', path, resume_step)
    with files.writing(path):
      if not path.exists() or path.stat().st_size != len(kept):
        files.write_atomic(path, kept)
      self._file = open(path, 'ab', buffering=0)
    self._pending = b''

  def append(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes a line, or keeps it for the next where the disk refuses.

    Raises:
      ValueError: the step is not above the last one.
    """
    if self._last is not None and step <= self._last:
      raise ValueError(f'{self._path}: step {step} does not follow step {self._last}')
    self._last = step
    line = (dumps({'step': step, **values}) + '\n').encode()
    self._sha256.update(line)
    self._pending += line
    try:
      self._flush()
    except OSError as error:
      _log.warning('%s: not written yet', files.one_line(error))

  def digest(self) -> str:
    """Hashes the file, with every line on disk.

    Raises:
      files.DiskError: the disk refuses a line.
    """
    self._flush()
    return self._sha256.hexdigest()

  def close(self) -> None:
    """Closes the file; warns of lines lost to a disk that still refuses."""
    try:
      self._flush()
    except OSError as error:
      _log.warning('%s: last lines lost', files.one_line(error))
    self._file.close()

  def _flush(self) -> None:
    if not self._pending:
      return
    with files.writing(self._path):
      end = self._file.seek(0, os.SEEK_END)
      view = memoryview(self._pending)
      try:
        while view:
          view = view[self._file.write(view) :]
        os.fsync(self._file.fileno())
      except OSError:
        # Half a line would damage the file; the next call tries again with all of it.
        self._file.truncate(end)
        raise
      self._pending = b''


def _kept(path: pathlib.Path, resume_step: int | None) -> tuple[int | None, bytes]:
  """Reads the last step up to `resume_step`, and the lines up to it."""
  lines = path.read_bytes().split(b'\n') if path.exists() else []
  last, kept = None, []
  for number, line in enumerate(lines[:-1], start=1):
    # What follows the last newline is empty, or the start of a line cut off by a kill.
    if resume_step is None or last == resume_step:
      break
    step = files.parse_json(line, f'{path} line {number}').get('step')
    if type(step) is not int:
      raise files.FileError(f'{path} line {number}: no step: repair that line')
    if step > resume_step:
      break
    last = step
    kept.append(line)
  cut = len(lines[:-1]) - len(kept)
  if cut:
    _log.warning('%s: %d lines cut, to resume after step %s', path, cut, resume_step)
  if kept and last != resume_step:
    _log.warning('%s: its last line is of step %s, not %s', path, last, resume_step)
  return last, b''.join(line + b'\n' for line in kept)


def dumps(value: Any) -> str:
  """Formats a line of strict ASCII JSON; `writers` says what it replaces."""
  return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {_plain(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, str):
    return _SURROGATE.sub('\ufffd', value)
  if isinstance(value, float) and not math.isfinite(value):
    return None if value != value else 'Infinity' if value > 0 else '-Infinity'
  if value is None or isinstance(value, (bool, int, float)):
    return value
  return _plain(np.asarray(value).tolist())  # NumPy and JAX arrays and scalars.
