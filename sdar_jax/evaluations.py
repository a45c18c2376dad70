"""The reports of a run, eval/<step>.json: which count, which are superseded. No JAX.

A run may be started again with other evaluation settings, or from other weights. All
reports in eval/ are of one kind, the present one's; others lie in eval/superseded/ as
<step>-<digest of their settings>.json, and come back when their settings do.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sdar_jax import files

_LIMIT = 2**30  # Bytes of a report that are read: 5 million episodes.


class Evaluations:
  """Reads and writes the reports of one run.

  Args:
    directory: of the run.
    expected: what every report that counts has, entry for entry: its settings, and
      what names the run's weights but for the step.
  """

  def __init__(self, directory: pathlib.Path, expected: Mapping[str, Any]):
    self._directory = directory / 'eval'
    self._superseded = self._directory / 'superseded'
    # Through JSON, so that what is compared is exactly what is stored.
    self._expected = json.loads(json.dumps(expected))

  def sort(self) -> int:
    """Sets reports of other settings aside, and brings back those of the present.

    Returns:
      How many were set aside.

    Raises:
      files.FileError: a report is damaged.
    """
    others = [p for p in self._directory.glob('*.json') if not self._counts(p)]
    for path in others:
      self._superseded.mkdir(exist_ok=True)
      path.replace(self._superseded / f'{path.stem}-{self._digest(path)}.json')
    for path in sorted(self._superseded.glob('*.json')):
      back = self._directory / f'{path.stem.partition("-")[0]}.json'
      if not back.exists() and self._counts(path):
        path.replace(back)
    for directory in (self._superseded, self._directory):
      if directory.exists():
        files.sync(directory)
    return len(others)

  def read(self, step: int) -> dict[str, Any] | None:
    """The report of a step, if it was evaluated with the present settings.

    Raises:
      files.FileError: it is damaged.
    """
    path = self._path(step)
    if not path.exists() or not self._counts(path):
      return None
    return _read(path)

  def write(self, step: int, report: Mapping[str, Any]) -> None:
    """Writes the report of a step, which `read` then finds."""
    self._directory.mkdir(exist_ok=True)
    data = json.dumps(report, indent=1).encode()
    files.write_atomic(self._path(step), data)

  def _path(self, step: int) -> pathlib.Path:
    return self._directory / f'{step:06d}.json'

  def _counts(self, path: pathlib.Path) -> bool:
    report = _read(path)
    return all(k in report and report[k] == v for k, v in self._expected.items())

  def _digest(self, path: pathlib.Path) -> str:
    """Short hash of what a report says of itself where the present ones say theirs."""
    report = _read(path)
    own = {key: report[key] for key in self._expected if key in report}
    text = json.dumps(own, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return files.read_json(path, limit=_LIMIT)
  except files.FileError as error:
    raise files.FileError(
      f'{error}: restore it, or delete it to play it again'
    ) from None
