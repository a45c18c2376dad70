"""Writes a run's numbers and episodes: to JSON lines and to sinks.

  metrics.jsonl               {"step": 3, "train/loss": ...}: fixed by the seed
  timing.jsonl                {"step": 3, "time": ..., "perf/...": ...}
  teacher.jsonl               {"step": 3, ...}: which skills the teacher saw
  trajectories/000003.jsonl   one trajectory per line
  run.json                    which world, panel, model and code, for comparisons

A float is written as the shortest decimal that reads back as the same float64, so equal
lines mean equal bits. JSON has no NaN and no infinity: a NaN, such as the mean of a
turn that no episode reached, is null, and infinities are the strings "Infinity" and
"-Infinity", which `float` reads. All files are ASCII: whatever a model
or an environment says is escaped, a lone surrogate becomes U+FFFD.

A step's line says what led to the checkpoint of that step. A resumed run first cuts the
files back to the step it resumes from, so no line is missing or doubled; a run without
a checkpoint moves them to aside-1/ (aside-2/, ...), so no result is deleted.
"""

import hashlib
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax import files
from sdar_jax.logs import metrics, trajectories
from sdar_jax.storage import ledger
from sdar_jax.storage.lines import JsonLines, dumps
from sdar_jax.trajectory import Group

_log = logging.getLogger(__name__)
_FILES = ('metrics.jsonl', 'timing.jsonl', 'teacher.jsonl')
RUN_SCHEMA = 1
_CHANGING = ('schema', 'panel_digest', 'code_versions')  # Of run.json, by other starts.


class Sink(Protocol):
  """Takes a run's numbers elsewhere."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""

  def close(self) -> None:
    """Flushes and closes."""


class MetricsWriter:
  """Writes a run's numbers and episodes under its work directory.

  A run that starts afresh moves what it finds there aside, under a new name.

  Args:
    directory: the work directory.
    resume_step: the step of the checkpoint that was restored; None starts afresh.
    sinks: other places that get every number.
    digests: that `digests` returned when the checkpoint was saved; None if it did not.

  Attributes:
    aside: where earlier files were moved; None if there were none.

  Raises:
    files.FileError: a file is damaged before the step to resume from, or was changed.
    files.DiskError: the disk refuses a file.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    resume_step: int | None,
    sinks: Sequence[Sink] = (),
    digests: Mapping[str, str] | None = None,
  ):
    directory = pathlib.Path(directory)
    with files.writing(directory):
      self.aside = _set_aside(directory) if resume_step is None else None
      self._trajectories = directory / 'trajectories'
      self._trajectories.mkdir(exist_ok=True)
    digests = digests or {}
    self._lines = {
      name: JsonLines(directory / name, resume_step, digests.get(name))
      for name in _FILES
    }
    self._metrics, self._timing, self._teacher = self._lines.values()
    for path in self._trajectories.glob('*.jsonl'):
      if path.stem.isdecimal() and int(path.stem) > resume_step:
        path.unlink()  # Played again.
    self._sinks = tuple(sinks)

  def write(
    self,
    step: int,
    values: Mapping[str, metrics.Value],
    timings: Mapping[str, metrics.Value],
  ) -> None:
    """Writes one step's line to each file; on disk before it returns.

    Raises:
      ValueError: a name is in no table, or the step is not above the last one.
    """
    for name in values:
      metrics.find(name, metrics.METRICS)
    for name in timings:
      metrics.find(name, metrics.TIMINGS)
    self._metrics.append(step, values)
    self._timing.append(step, {'time': time.time(), **timings})
    numbers = _scalars({**values, **timings})
    self._tell(lambda sink: sink.write(step, numbers), f'step {step} lost')

  def teacher(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes the skills shown to a step's teachers."""
    self._teacher.append(step, values)

  def trajectories(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a step's episodes; a full disk costs them, not the run."""
    text = ''.join(dumps(record) + '\n' for record in records)
    try:
      files.write_atomic(self._trajectories / f'{step:06d}.jsonl', text.encode())
    except OSError as error:
      _log.warning('trajectories of step %d lost: %s', step, files.one_line(error))

  def digests(self) -> dict[str, str]:
    """Hashes the files decided by the seed, with every line on disk.

    Raises:
      files.DiskError: the disk refuses a line.
    """
    names = ('metrics.jsonl', 'teacher.jsonl')
    return {name: self._lines[name].digest() for name in names}

  def close(self) -> None:
    """Closes files and sinks."""
    for lines in self._lines.values():
      lines.close()
    self._tell(lambda sink: sink.close(), 'not closed')

  def _tell(self, what: Callable[[Sink], None], otherwise: str) -> None:
    """Calls each sink; a failure costs its own numbers, not the run."""
    for sink in self._sinks:
      try:
        what(sink)
      except Exception as error:  # Other people's code and services.
        name, why = type(sink).__name__, files.one_line(error)
        _log.warning('%s: %s: %s', name, otherwise, why)


class Mute:
  """Writes nothing: where another process of the run writes."""

  aside = None

  def write(self, *args: Any) -> None:
    """Ignores a step's numbers."""

  def teacher(self, *args: Any) -> None:
    """Ignores the skills shown."""

  def trajectories(self, *args: Any) -> None:
    """Ignores a step's episodes."""

  def digests(self) -> dict[str, str]:
    """Has written nothing that could be known again."""
    return {}

  def close(self) -> None:
    """Has nothing to close."""


def _set_aside(directory: pathlib.Path) -> pathlib.Path | None:
  """Moves the results of an earlier start to a new directory.

  The report of step 0 stays: it is of the initial policy, which no training changes.
  """
  paths = [directory / name for name in (*_FILES, 'trajectories')]
  for pattern in ('*.json', 'episodes/*.jsonl'):
    paths += [p for p in (directory / 'eval').glob(pattern) if p.stem.strip('0')]
  found = [path for path in paths if _holds_something(path)]
  if not found:
    return None
  number = 1
  while (aside := directory / f'aside-{number}').exists():
    number += 1
  for path in found:
    target = aside / path.relative_to(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, target)
  ledger.forget_reports(directory, (p.name for p in found if p.suffix == '.json'))
  return aside


def _holds_something(path: pathlib.Path) -> bool:
  if path.is_dir():
    return any(path.iterdir())
  return path.exists() and path.stat().st_size > 0


def with_tokens(
  groups: Iterable[Group],
  tokens: Iterable[Mapping[str, Any]],
  means: Mapping[tuple[int, int], Mapping[str, float]] | None = None,
) -> Iterator[dict[str, Any]]:
  """Adds what is known of turns and tokens to trajectory records.

  Args:
    groups: a step's groups.
    tokens: objects with `trajectory_id` (group_id * G + member), `turn_id` and arrays
      of one value per response token (log-probs, gap, gate, ...), or one value for all.
    means: (trajectory_id, turn_id) -> averages over a turn's tokens.

  Yields:
    `trajectories.to_json` of each member with its head, and with `means` and `tokens`
    in the turns that have any.

  Raises:
    ValueError: no turn is the one that an object of `tokens` names.
  """
  by_turn = {(t['trajectory_id'], t['turn_id']): t for t in tokens}
  for group in groups:
    for trajectory in group.trajectories:
      record = trajectories.to_json(trajectory)
      identity = group.group_id * len(group.trajectories) + trajectory.member
      for turn_id, turn in enumerate(record['turns']):
        if means and (identity, turn_id) in means:
          turn['means'] = dict(means[identity, turn_id])
        if (identity, turn_id) in by_turn:
          turn['tokens'] = dict(by_turn.pop((identity, turn_id)))
      yield trajectories.with_head(record, getattr(group.task, 'goal', ''))
  if by_turn:
    raise ValueError(f'no turn is (trajectory, turn) {sorted(by_turn)[0]}')


def _scalars(values: Mapping[str, metrics.Value]) -> dict[str, float]:
  """Flattens lists to one name per element; finite numbers only."""
  out = {}
  for name, value in values.items():
    array = np.asarray(value, np.float64)
    if array.ndim == 0:
      out[name] = float(array)
    else:
      out.update({f'{name}/{i}': float(item) for i, item in enumerate(array)})
  return {name: value for name, value in out.items() if math.isfinite(value)}


def write_run(
  directory: str | os.PathLike,
  *,
  method: str,
  seed: int,
  config_digest: str,
  model_digest: str,
  world_digest: str,
  tokenizer_digest: str,
  skills_digest: str,
  numerics: str,
  teacher_digest: str = '',
) -> None:
  """Writes run.json, by which comparisons tell runs apart.

  Its `code_versions` lists the code that has worked on the run, one entry unless that
  changed between two starts.

  Raises:
    ValueError: the directory has a run.json that is damaged.
  """
  path = pathlib.Path(directory) / 'run.json'
  known = files.read_json(path) if path.exists() else {'code_versions': []}
  versions = known.get('code_versions')
  if not isinstance(versions, list):
    raise files.FileError(f'{path}: no list of code_versions: restore or delete it')
  record = {
    'schema': RUN_SCHEMA,
    'method': method,
    'seed': seed,
    'config_digest': config_digest,
    'model_digest': model_digest,
    'world_digest': world_digest,
    'tokenizer_digest': tokenizer_digest,
    'skills_digest': skills_digest,
    **({'teacher_digest': teacher_digest} if teacher_digest else {}),
    'numerics': numerics,
    'code_versions': list(dict.fromkeys([*versions, code_version()])),
  }
  for key, value in record.items():
    if key not in _CHANGING and known.get(key, value) != value:
      raise files.FileError(
        f'{path}: {key} was {known[key]!r}, is {value!r}: use another workdir'
      )
  files.write_atomic(path, (json.dumps(record, indent=1) + '\n').encode())


def code_version() -> str:
  """Hashes names and contents of this package's Python files."""
  package = pathlib.Path(__file__).parents[1]
  total = hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    name = path.relative_to(package).as_posix()
    total.update(f'{name}\0{files.digest(path)}\n'.encode())
  return total.hexdigest()
