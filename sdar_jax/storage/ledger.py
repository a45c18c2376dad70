"""Ledger of a run: digests of reports, its newest checkpoint. No JAX.

`ledger.json` lies in the work directory. A report that was changed after it was written
is noticed by whoever reads it, and a run whose checkpoints were lost is not taken for
one that has none yet.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from sdar_jax import files

NAME = 'ledger.json'
_SCHEMA = 1
_LIMIT = 2**30  # Bytes of a report that are read: 5 million episodes.


def _read(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / NAME
  if not path.exists():  # A new run, or one of a version that had no ledger.
    return {'schema': _SCHEMA, 'checkpoint': 0, 'reports': {}}
  record = files.read_json(path)
  reports, step = record.get('reports'), record.get('checkpoint')
  if record.get('schema') != _SCHEMA or type(step) is not int:
    raise files.FileError(f'{path}: no ledger of schema {_SCHEMA}: restore it')
  if not isinstance(reports, dict):
    raise files.FileError(f'{path}: its reports must be an object: restore it')
  return record


def _write(directory: pathlib.Path, record: dict[str, Any]) -> None:
  text = json.dumps(record, indent=1, sort_keys=True) + '\n'
  files.write_atomic(directory / NAME, text.encode())


def saved_step(directory: str | os.PathLike) -> int:
  """Reads the step of the newest checkpoint ever saved; 0 without any."""
  return _read(pathlib.Path(directory))['checkpoint']


def note_checkpoint(directory: str | os.PathLike, step: int) -> None:
  """Records the checkpoint of a step."""
  directory = pathlib.Path(directory)
  _write(directory, {**_read(directory), 'checkpoint': step})


def write_report(directory: pathlib.Path, name: str, report: dict[str, Any]) -> None:
  """Writes an evaluation report, DIRECTORY/eval/NAME, and its digest."""
  path, text = directory / 'eval' / name, json.dumps(report, indent=1).encode()
  record = _read(directory)
  record['reports'][name] = hashlib.sha256(text).hexdigest()
  # First, for a report that is not there yet is played again.
  _write(directory, record)
  with files.writing(path):
    path.parent.mkdir(exist_ok=True)
    files.write_atomic(path, text)


def read_report(directory: pathlib.Path, name: str) -> dict[str, Any]:
  """Reads an evaluation report, DIRECTORY/eval/NAME.

  Raises:
    files.FileError: it is damaged, or not as it was written.
  """
  path, known = directory / 'eval' / name, _read(directory)['reports']
  report = files.read_json(path, limit=_LIMIT)
  if name in known and files.digest(path) != known[name]:
    raise files.FileError(f'{path}: {files.CHANGED}')
  return report


def move_report(directory: pathlib.Path, name: str, other: str) -> None:
  """Renames a report within DIRECTORY/eval, and its digest."""
  record = _read(directory)
  if name in record['reports']:
    record['reports'][other] = record['reports'].pop(name)
    _write(directory, record)
  path = directory / 'eval' / other
  with files.writing(path):
    path.parent.mkdir(exist_ok=True)
    (directory / 'eval' / name).replace(path)
    files.sync(path.parent)


def forget_reports(directory: pathlib.Path, names: Iterable[str]) -> None:
  """Drops the digests of reports gone from DIRECTORY/eval."""
  record, names = _read(directory), set(names)
  if names & record['reports'].keys():
    kept = {k: v for k, v in record['reports'].items() if k not in names}
    _write(directory, {**record, 'reports': kept})


def check(directory: str | os.PathLike) -> list[str]:
  """Compares reports with their digests; returns the missing ones.

  Raises:
    files.FileError: a report is damaged, or not as it was written.
  """
  directory, missing = pathlib.Path(directory), []
  for name in sorted(_read(directory)['reports']):
    if '..' in pathlib.PurePath(name).parts or pathlib.PurePath(name).is_absolute():
      raise files.FileError(f'{directory / NAME}: {name!r} is no report: restore it')
    if (directory / 'eval' / name).exists():
      read_report(directory, name)
    else:
      missing.append(name)
  return missing
