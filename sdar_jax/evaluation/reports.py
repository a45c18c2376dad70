"""Reports of a run, eval/<step>.json: current and superseded. No JAX.

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
from sdar_jax.storage import ledger


class Evaluations:
  """Reads and writes the reports of one run.

  Args:
    directory: of the run.
    expected: what every report that counts has, entry for entry: its settings, and
      what names the run's weights but for the step.
  """

  def __init__(self, directory: pathlib.Path, expected: Mapping[str, Any]):
    self._directory = directory
    # Through JSON, so that what is compared is exactly what is stored.
    self._expected = json.loads(json.dumps(expected))

  def sort(self) -> int:
    """Sets reports of other settings aside; restores those of the present.

    Returns:
      How many were set aside.

    Raises:
      files.FileError: a report is damaged or was changed.
    """
    names = sorted(p.name for p in (self._directory / 'eval').glob('*.json'))
    reports = {name: self._report(name) for name in names}
    others = [name for name in names if not self._counts(reports[name])]
    for name in others:
      step, digest = pathlib.PurePath(name).stem, self._digest(reports[name])
      self._move(name, f'superseded/{step}-{digest}.json')
    for path in sorted((self._directory / 'eval' / 'superseded').glob('*.json')):
      name = f'{path.stem.partition("-")[0]}.json'
      aside = f'superseded/{path.name}'
      if name not in set(names) - set(others) and self._counts(self._report(aside)):
        self._move(aside, name)
    return len(others)

  def read(self, step: int) -> dict[str, Any] | None:
    """The report of a step, if it was evaluated with the present settings.

    Raises:
      files.FileError: it is damaged or was changed.
    """
    name = _name(step)
    if not (self._directory / 'eval' / name).exists():
      return None
    report = self._report(name)
    return report if self._counts(report) else None

  def write(self, step: int, report: Mapping[str, Any]) -> None:
    """Writes the report of a step."""
    ledger.write_report(self._directory, _name(step), dict(report))

  def _move(self, name: str, other: str) -> None:
    ledger.move_report(self._directory, name, other)

  def _report(self, name: str) -> dict[str, Any]:
    try:
      return ledger.read_report(self._directory, name)
    except files.FileError as error:
      raise files.FileError(
        f'{error}: restore it, or delete it to play it again'
      ) from None

  def _counts(self, report: Mapping[str, Any]) -> bool:
    return all(k in report and report[k] == v for k, v in self._expected.items())

  def _digest(self, report: Mapping[str, Any]) -> str:
    """Hashes the settings of a report, for its name when set aside."""
    own = {key: report[key] for key in self._expected if key in report}
    text = json.dumps(own, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _name(step: int) -> str:
  return f'{step:06d}.json'
