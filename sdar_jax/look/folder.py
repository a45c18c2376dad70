"""Reads run directories for people: indexed, lazily. No JAX.

A step's file has an episode in every line, and what a list of episodes shows stands in
front of its turns: opening a run reads heads alone, and an episode is parsed when it is
asked for. A line that is damaged, half written, of another version or larger than
`_LONGEST` bytes is left out and counted in `RunFolder.notes`.
"""

import dataclasses
import mmap
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdar_jax import files
from sdar_jax.logs import trajectories

KINDS = ('train', 'eval')
_LONGEST = 64 * 2**20  # Bytes of a line.
_TURNS = (
  b', "turns": '  # Cannot stand inside of a JSON string, whose quotes are escaped.
)
_FOLDERS = {'train': 'trajectories', 'eval': 'eval/episodes'}
# Of records that have no sums in front: what each turn, each recorded turn, has once.
_TURN, _RECORDED = b'"stop_reason": "', b'"token_texts": ['
_STEP = re.compile(r'\d{1,9}')


class LookError(ValueError):
  """Nothing to look at: one line with the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class Head:
  """Holds what is known of an episode without its turns.

  Attributes:
    kind: 'train' or 'eval', whose `member` is the attempt.
    goal: what the task asks for; '' where that was not recorded.
    path: of its file; `start` and `size` are the place of its line there, in bytes.
    line: its number, from 1.
    length: turns.
    recorded: turns whose tokens are recorded.
    means: over turns, of `advantage`, `gap`, `gate` where there are such.
  """

  kind: str
  step: int
  task_id: str
  task_type: str
  goal: str
  group_id: int
  member: int
  outcome: str
  episode_return: float
  score: float | None
  length: int
  recorded: int
  means: dict[str, float]
  path: pathlib.Path
  start: int
  size: int
  line: int

  @property
  def success(self) -> bool:
    """Whether the world counts it as solved."""
    return self.outcome == 'success'

  def record(self) -> dict[str, Any]:
    """Parses the whole record.

    Raises:
      LookError: its line is damaged, or the file was changed since it was indexed.
    """
    try:
      with open(self.path, 'rb') as file:
        file.seek(self.start)
        data = file.read(self.size)
      return files.parse_json(data, f'{self.path} line {self.line}')
    except (OSError, files.FileError) as error:
      raise LookError(files.one_line(error)) from None


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Holds the index of a run directory.

  Attributes:
    path: the directory.
    name: for people: its last two parts.
    config: flattened; {} where it has none.
    identity: run.json; {} where it has none.
    episodes: heads, by kind, step and place.
    notes: what was left out and why, a line each.
  """

  path: pathlib.Path
  name: str
  config: dict[str, Any]
  identity: dict[str, Any]
  episodes: tuple[Head, ...]
  notes: tuple[str, ...]

  @property
  def method(self) -> str:
    """The name of its algorithm, '' where it is not known."""
    return str(self.identity.get('method', self.config.get('algorithm.name', '')))

  def lines(self, name: str, notes: list[str]) -> list[dict[str, Any]]:
    """Reads metrics.jsonl or timing.jsonl, up to the first damaged line.

    What is left out goes to `notes`, but for a last line without its end: that is what
    a run is writing, or was when it was killed.
    """
    path, out = self.path / name, []
    try:
      text = path.read_text(encoding='utf-8', errors='replace')
      for number, line in enumerate(text.split('\n'), 1):
        if line or number <= text.count('\n'):
          out.append(files.parse_json(line, f'{path} line {number}'))
    except FileNotFoundError:
      return out
    except OSError as error:
      notes.append(f'{path}: {error.strerror or files.one_line(error)}')
    except files.FileError as error:
      if number <= text.count('\n'):
        notes.append(f'{files.one_line(error)}: nothing from there on is shown')
    return out

  def reports(self, notes: list[str]) -> list[dict[str, Any]]:
    """Reads evaluation reports by step; what is left out goes to `notes`."""
    out = []
    for path in sorted((self.path / 'eval').glob('*.json')):
      try:
        report = files.read_json(path, limit=_LONGEST)
        if (fault := _unsound(report)) is not None:
          raise files.FileError(f'{path}: {fault}')
        out.append(report)
      except files.FileError as error:
        notes.append(f'left out {files.one_line(error)}')
    return sorted(out, key=lambda report: report['step'])


def _unsound(report: Mapping[str, Any]) -> str | None:
  """Says what a report lacks to be drawn; None for nothing."""
  if type(report.get('step')) is not int:
    return 'has no step'
  types = report.get('by_type', {})
  if not isinstance(types, dict):
    return 'by_type is no object'
  for said in (report, *types.values()):
    rate = said.get('success_rate') if isinstance(said, dict) else ''
    if rate is None:  # Of what nothing was played.
      continue
    ends = said.get('interval') if isinstance(said, dict) else None
    if not isinstance(ends, list) or len(ends) != 2:
      return 'a rate has no interval'
    if None in map(number_of, (rate, *ends)):
      return 'a rate or its interval is no number'
  return None


def read(path: pathlib.Path, step: int | None = None) -> RunFolder:
  """Indexes a run directory.

  Args:
    path: the directory.
    step: reads the files of this step alone.

  Raises:
    LookError: it is no run, or holds no episode that this version can read.
  """
  if not path.is_dir():
    raise LookError(f'{path}: there is no such directory')
  notes: list[str] = []
  found = [(kind, file) for kind in KINDS for file in _files(path, kind, step)]
  if not found:
    at = '' if step is None else f' of step {step}'
    raise LookError(
      f'{path} has no episodes{at} in trajectories/ or eval/episodes/: no run, or one'
      ' with config.log.trajectories_every=0'
    )
  episodes = [
    head for kind, file in found for head in index(kind, file, int(file.stem), notes)
  ]
  if not episodes:
    raise LookError(notes[0] if notes else f'{path}: its files are empty')
  return open_folder(path, episodes, notes)


def open_folder(
  path: pathlib.Path, episodes: Iterable[Head] = (), notes: Iterable[str] = ()
) -> RunFolder:
  """Reads what a run directory says of itself, without its episodes."""
  notes = list(notes)
  return RunFolder(
    path=path,
    name='/'.join(path.absolute().parts[-2:]).lstrip('/'),
    config=_optional(path / 'config.json', notes),
    identity=_optional(path / 'run.json', notes),
    episodes=tuple(episodes),
    notes=tuple(notes),
  )


def _files(path: pathlib.Path, kind: str, step: int | None) -> list[pathlib.Path]:
  found = (path / _FOLDERS[kind]).glob('*.jsonl')
  return sorted(
    file
    for file in found
    if _STEP.fullmatch(file.stem) and step in (None, int(file.stem))
  )


def _optional(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
  try:
    return files.read_json(path)
  except files.FileError as error:
    notes.append(files.one_line(error))
    return {}


def index(kind: str, path: pathlib.Path, step: int, notes: list[str]) -> list[Head]:
  """Reads the heads of a file; what is left out goes to `notes`."""
  heads, faults = [], []
  try:
    for number, start, data in _lines(path):
      try:
        heads.append(_head(kind, path, step, number, start, data))
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f'no {error}' if isinstance(error, KeyError) else files.one_line(error)
        faults.append(f'line {number}: {what.removeprefix(f"{path} line {number}: ")}')
  except OSError as error:
    faults.append(error.strerror or files.one_line(error))
  if faults:
    more = f', and {len(faults) - 1} more' if len(faults) > 1 else ''
    notes.append(f'{path}: left out {faults[0]}{more}')
  return heads


def _lines(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
  """Yields number, place and bytes of lines; b'' for one too long."""
  with open(path, 'rb') as file:
    if not path.stat().st_size:
      return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
      start, number = 0, 1
      while start < len(view):
        end = view.find(b'\n', start)
        end = len(view) if end < 0 else end
        yield number, start, view[start:end] if end - start <= _LONGEST else b''
        start, number = end + 1, number + 1


def _head(
  kind: str, path: pathlib.Path, step: int, number: int, start: int, data: bytes
) -> Head:
  if not data:
    raise ValueError(f'it is empty, or longer than {_LONGEST} bytes')
  if not data.endswith(b'}'):
    raise ValueError('it was written in part')
  front, found, _ = data.partition(_TURNS)
  values = files.parse_json(front + b'}' if found else data, f'{path} line {number}')
  trajectories.check_schema(values['schema'])
  if not found:
    raise KeyError('turns')
  count = lambda name, mark: (
    _whole(values[name]) if name in values else data.count(mark)
  )
  means = values.get('means', {})
  return Head(
    kind=kind,
    step=step,
    task_id=_text(values['task_id']),
    task_type=_text(values['task_type']),
    goal=_text(values.get('goal', '')),
    group_id=_whole(values['group_id']),
    member=_whole(values['member']),
    outcome=_text(values['outcome']),
    episode_return=number_of(values['return']) or 0.0,
    score=number_of(values['score']),
    length=count('length', _TURN),
    recorded=count('recorded', _RECORDED),
    means={
      name: value
      for name in ('advantage', 'gap', 'gate')
      if (value := number_of(means.get(name))) is not None
    },
    path=path,
    start=start,
    size=len(data),
    line=number,
  )


def number_of(value: Any) -> float | None:
  """Reads a number; "Infinity" is one in records, null is none."""
  if type(value) is float:
    return value
  if isinstance(value, str) and value in ('Infinity', '-Infinity'):
    return float(value)
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  return None


def _whole(value: Any) -> int:
  if type(value) is not int or abs(value) >= 2**53:
    raise TypeError(f'{str(value)[:40]!r} is no count')
  return value


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError(f'{str(value)[:40]!r} is no text')
  return value
