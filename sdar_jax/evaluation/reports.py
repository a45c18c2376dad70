"""Keeps the reports of a run, eval/<step>.json, and episodes. No JAX.

A run may be started again with other evaluation settings, or from other weights. All
reports in eval/ are of one kind, the present one's; others lie in eval/superseded/ as
<step>-<digest of their settings>.json, and come back when their settings do. Episodes
of a report, in eval/episodes/, go and come with it.
"""

import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.storage import ledger, lines

_log = logging.getLogger(__name__)


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

  def write(
    self,
    step: int,
    report: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]] = (),
  ) -> None:
    """Writes the report of a step, and episodes, which a full disk costs."""
    ledger.write_report(self._directory, _name(step), dict(report))
    path = self._episodes(_name(step))
    text = ''.join(lines.dumps(episode) + '\n' for episode in episodes)
    try:
      path.unlink(missing_ok=True)  # Of a report that was deleted to play it again.
      if text:
        path.parent.mkdir(exist_ok=True)
        files.write_atomic(path, text.encode())
    except OSError as error:
      _log.warning('episodes of the evaluation lost: %s', files.one_line(error))

  def _episodes(self, name: str) -> pathlib.Path:
    """Where the episodes of a report lie."""
    return (self._directory / 'eval' / 'episodes' / name).with_suffix('.jsonl')

  def _move(self, name: str, other: str) -> None:
    ledger.move_report(self._directory, name, other)
    here, there = self._episodes(name), self._episodes(other)
    if here.exists():
      there.parent.mkdir(exist_ok=True)
      here.replace(there)

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
