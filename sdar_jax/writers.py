"""Where numbers and episodes go: JSON lines in the work directory, and optional sinks.

  metrics.jsonl               {"step": 3, "train/loss": ...}: fixed by the seed
  timing.jsonl                {"step": 3, "time": ..., "perf/...": ...}
  teacher.jsonl               {"step": 3, ...}: which skills the teacher saw
  trajectories/000003.jsonl   one trajectory per line
  run.json                    which world, panel, model and code, for comparisons

A float is written as the shortest decimal that reads back as the same float64, so equal
lines mean equal bits. JSON has no NaN or infinity: they are the strings "NaN",
"Infinity" and "-Infinity", which `float` reads. All files are ASCII: whatever a model
or an environment says is escaped, a lone surrogate becomes U+FFFD.

A step's line says what led to the checkpoint of that step. A resumed run first cuts the
files back to the step it resumes from, so no line is missing or doubled.
"""

import hashlib
import json
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax import files, metrics
from sdar_jax import trajectory as trajectory_lib

_log = logging.getLogger(__name__)
_SURROGATE = re.compile('[\ud800-\udfff]')
RUN_SCHEMA = 1


class Sink(Protocol):
  """Somewhere else for the same numbers."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""

  def close(self) -> None:
    """Hands over what is buffered."""


class MetricsWriter:
  """Writes a run's numbers and episodes under its work directory.

  Args:
    directory: the work directory.
    resume_step: the step of the checkpoint that was restored; None starts afresh.
    sinks: other places that get every number.

  Raises:
    ValueError: a file is damaged before the step to resume from.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    resume_step: int | None,
    sinks: Sequence[Sink] = (),
  ):
    directory = pathlib.Path(directory)
    self._metrics = _Lines(directory / 'metrics.jsonl', resume_step)
    self._timing = _Lines(directory / 'timing.jsonl', resume_step)
    self._teacher = _Lines(directory / 'teacher.jsonl', resume_step)
    self._trajectories = directory / 'trajectories'
    self._trajectories.mkdir(exist_ok=True)
    for path in self._trajectories.glob('*.jsonl'):
      if path.stem.isdecimal() and (
        resume_step is None or int(path.stem) > resume_step
      ):
        path.unlink()
    self._sinks = tuple(sinks)

  def write(
    self,
    step: int,
    values: Mapping[str, metrics.Value],
    timings: Mapping[str, metrics.Value],
  ) -> None:
    """Writes one step's line to each file. On disk before it returns.

    Raises:
      ValueError: a name is in no table, or the step is not above the last one.
    """
    for name in values:
      metrics.find(name, metrics.METRICS)
    for name in timings:
      metrics.find(name, metrics.TIMINGS)
    self._metrics.append(step, values)
    self._timing.append(step, {'time': time.time(), **timings})
    for sink in self._sinks:
      sink.write(step, _scalars({**values, **timings}))

  def teacher(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes what a step's teachers were shown."""
    self._teacher.append(step, values)

  def trajectories(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a step's episodes; a disk that is full costs them, not the run."""
    text = ''.join(dumps(record) + '\n' for record in records)
    try:
      files.write_atomic(self._trajectories / f'{step:06d}.jsonl', text.encode())
    except OSError as error:
      _log.warning('trajectories of step %d lost: %s', step, files.one_line(error))

  def close(self) -> None:
    """Closes files and sinks."""
    self._metrics.close()
    self._timing.close()
    self._teacher.close()
    for sink in self._sinks:
      sink.close()


class _Lines:
  """A file of JSON lines with rising steps, cut back on opening."""

  def __init__(self, path: pathlib.Path, resume_step: int | None):
    self._path = path
    self._last, kept = _kept(path, resume_step)
    if not path.exists() or path.stat().st_size != len(kept):
      files.write_atomic(path, kept)
    self._file = open(path, 'ab', buffering=0)
    self._pending = b''

  def append(self, step: int, values: Mapping[str, Any]) -> None:
    if self._last is not None and step <= self._last:
      raise ValueError(f'{self._path}: step {step} does not follow step {self._last}')
    self._last = step
    self._pending += (dumps({'step': step, **values}) + '\n').encode()
    self._flush()

  def close(self) -> None:
    self._flush()
    self._file.close()

  def _flush(self) -> None:
    end = self._file.seek(0, os.SEEK_END)
    view = memoryview(self._pending)
    try:
      while view:
        view = view[self._file.write(view) :]
      os.fsync(self._file.fileno())
      self._pending = b''
    except OSError as error:
      # Half a line would damage the file; the next call tries again with all of it.
      self._file.truncate(end)
      _log.warning('%s: not written yet: %s', self._path, files.one_line(error))


def _kept(path: pathlib.Path, resume_step: int | None) -> tuple[int | None, bytes]:
  """The last step up to `resume_step` in a file, and the lines up to it."""
  lines = path.read_bytes().split(b'\n') if path.exists() else []
  last, kept = None, []
  for number, line in enumerate(lines[:-1], start=1):
    # What follows the last newline is empty, or the start of a line cut off by a kill.
    if resume_step is None or last == resume_step:
      break
    try:
      step = json.loads(line)['step']
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f'{path}:{number} is damaged ({files.one_line(error)}): repair that line'
      ) from error
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


def with_tokens(
  groups: Iterable[trajectory_lib.Group], tokens: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
  """Trajectory records whose sampled turns carry their per-token arrays.

  Args:
    groups: a step's groups.
    tokens: objects with `trajectory_id` (group_id * G + member), `turn_id` and arrays
      of one value per response token (log-probs, gap, gate, ...), or one value for all.

  Yields:
    `trajectory.to_json` of each member, with `tokens` in the turns that have any.

  Raises:
    ValueError: no turn is the one that an object of `tokens` names.
  """
  by_turn = {(t['trajectory_id'], t['turn_id']): t for t in tokens}
  for group in groups:
    for trajectory in group.trajectories:
      record = trajectory_lib.to_json(trajectory)
      identity = group.group_id * len(group.trajectories) + trajectory.member
      for turn_id, turn in enumerate(record['turns']):
        if (identity, turn_id) in by_turn:
          turn['tokens'] = dict(by_turn.pop((identity, turn_id)))
      yield record
  if by_turn:
    raise ValueError(f'no turn is (trajectory, turn) {sorted(by_turn)[0]}')


def dumps(value: Any) -> str:
  """One line of strict ASCII JSON; see the head of this file for what is replaced."""
  return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {_plain(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, str):
    return _SURROGATE.sub('\ufffd', value)
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if value != value else 'Infinity' if value > 0 else '-Infinity'
  if value is None or isinstance(value, (bool, int, float)):
    return value
  return _plain(np.asarray(value).tolist())  # NumPy and JAX arrays and scalars.


def _scalars(values: Mapping[str, metrics.Value]) -> dict[str, float]:
  """Lists as one name per element, for sinks that know only numbers."""
  out = {}
  for name, value in values.items():
    array = np.asarray(value, np.float64)
    if array.ndim == 0:
      out[name] = float(array)
    else:
      out.update({f'{name}/{i}': float(item) for i, item in enumerate(array)})
  return out


def write_run(
  directory: str | os.PathLike,
  *,
  method: str,
  seed: int,
  config_digest: str,
  model_digest: str,
  panel_digest: str,
  world_digest: str,
  tokenizer_digest: str,
  skills_digest: str,
  numerics: str,
) -> None:
  """Writes run.json: what a run is, for those who compare runs.

  Its `code_versions` lists the code that has worked on the run, one entry unless that
  changed between two starts.

  Raises:
    ValueError: the directory has a run.json that is damaged.
  """
  path = pathlib.Path(directory) / 'run.json'
  versions = []
  if path.exists():
    try:
      versions = json.loads(path.read_text())['code_versions']
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f'{path} is damaged ({files.one_line(error)}): restore or delete it'
      ) from error
  record = {
    'schema': RUN_SCHEMA,
    'method': method,
    'seed': seed,
    'config_digest': config_digest,
    'model_digest': model_digest,
    'panel_digest': panel_digest,
    'world_digest': world_digest,
    'tokenizer_digest': tokenizer_digest,
    'skills_digest': skills_digest,
    'numerics': numerics,
    'code_versions': list(dict.fromkeys([*versions, code_version()])),
  }
  files.write_atomic(path, (json.dumps(record, indent=1) + '\n').encode())


def code_version() -> str:
  """Hex SHA-256 over names and contents of this package's Python files."""
  package = pathlib.Path(__file__).parent
  total = hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    name = path.relative_to(package).as_posix()
    total.update(f'{name}\0{files.digest(path)}\n'.encode())
  return total.hexdigest()


class TensorBoardSink:
  """Numbers as TensorBoard scalars. Needs `pip install tensorboardX`."""

  def __init__(self, directory: str | os.PathLike, resume_step: int | None):
    try:
      import tensorboardX
    except ImportError as error:
      raise ValueError('TensorBoard output needs `pip install tensorboardX`') from error
    purge = None if resume_step is None else resume_step + 1
    self._writer = tensorboardX.SummaryWriter(os.fspath(directory), purge_step=purge)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    """Hands over what is buffered."""
    self._writer.close()


class WandbSink:
  """Numbers to Weights & Biases. Needs `pip install wandb` and an account."""

  def __init__(
    self, project: str, directory: str | os.PathLike, config: Mapping[str, Any]
  ):
    try:
      import wandb
    except ImportError as error:
      raise ValueError('Weights & Biases output needs `pip install wandb`') from error
    # The same directory continues the same run.
    name = pathlib.Path(directory).absolute().name
    self._run = wandb.init(
      project=project,
      dir=os.fspath(directory),
      config=dict(config),
      id=name,
      resume='allow',
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes one step's numbers."""
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Hands over what is buffered."""
    self._run.finish()
