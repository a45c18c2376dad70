"""Makes the cells of a study: what they train, where, and what is there."""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from experiments import sources
from experiments.sources import WORLDS, Source
from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.cli import config_file
from sdar_jax.methods import table
from sdar_jax.process.flags import UsageError
from sdar_jax.storage import workdir as workdir_lib

_STUDIES = pathlib.Path(__file__).with_name('studies')
_KEYS = (
  *('methods', 'seeds', 'baseline', 'overrides', 'method_overrides'),
  *('retries', 'cell_seconds'),
)
# One of the first two, and what only studies that tune say: see `sweep`.
OPTIONAL = {
  'world': '',
  'config': '',
  'sweep': {},
  'sweep_seeds': (100, 101, 102),
  'sweep_split': 'valid_seen',
  'sweep_overrides': {},
}
_FIXED = ('seed', 'algorithm.name')  # A cell's identity, which no override changes.
# Reports of one study are compared: the panel may not change between two calls.
# What imitation reads decides nothing of a run that trains.
_HARMLESS = (*(k for k in workdir_lib.HARMLESS if k != 'eval'), 'eval.every', 'sft')


class StudyError(ValueError):
  """A study that cannot be run: one line naming what to change."""


@dataclasses.dataclass
class Cell:
  """One run of a study.

  Attributes:
    method: of the table.
    text: the value of its --config.
    overrides: flattened keys of the run's config, and their values.
    config: what it trains with.
    workdir: of the run.
    candidate: the values that it tries, where it is one of a sweep.
    state: 'waiting', 'running', 'done', 'failed', 'stopped', 'over budget', 'blocked'.
    seconds: that its processes took in this call.
    attempts: processes of this call.
    past: (seconds, attempts) of earlier calls.
    exit_code: of its last process.
    cores: that its last process was confined to; empty where it was not.
    error: why it is not done, in one line.
  """

  method: str
  seed: int
  text: str
  overrides: dict[str, Any]
  config: Any
  workdir: pathlib.Path
  candidate: dict[str, Any] = dataclasses.field(default_factory=dict)
  state: str = 'waiting'
  seconds: float = 0.0
  attempts: int = 0
  past: tuple[float, int] = (0.0, 0)
  exit_code: int | None = None
  cores: list[int] = dataclasses.field(default_factory=list)
  error: str = ''

  @property
  def log(self) -> pathlib.Path:
    """Names the file of what it prints."""
    return self.workdir.with_name(f'{self.workdir.name}.log')

  def check(self) -> None:
    """Sets the state by what its directory holds; overwrites nothing."""
    if not (self.workdir / 'config.json').exists():
      return
    try:
      with workdir_lib.Workdir(self.workdir, self.config, _HARMLESS):
        pass  # It is free, and of this config.
    except workdir_lib.WorkdirError as error:
      self.state, self.error = 'blocked', files.one_line(error, 1000)
      return
    if (self.workdir / 'eval' / f'{self.config.steps:06d}.json').exists():
      self.state = 'done'

  def record(self) -> dict[str, Any]:
    """Makes its entry in study.json."""
    names = ('method', 'seed', 'state', 'exit_code', 'cores', 'error')
    return {
      **{name: getattr(self, name) for name in names},
      **({'candidate': self.candidate} if self.candidate else {}),
      'seconds': round(self.past[0] + self.seconds, 1),
      'attempts': self.past[1] + self.attempts,
      'workdir': str(self.workdir),
    }

  def remember(self, record: dict[str, Any]) -> None:
    """Takes over what an earlier call recorded of the same directory."""
    self.past = record['seconds'], record['attempts']
    self.exit_code = record['exit_code']
    self.cores = record.get('cores', [])  # Not in records of the first version.

  def __str__(self) -> str:
    tried = ''.join(f' {key}={value}' for key, value in self.candidate.items())
    return f'{self.method}{tried}, seed {self.seed}'


def training_command(cell: Cell) -> list[str]:
  """Makes the command that trains a cell."""
  return [
    *(sys.executable, '-m', 'sdar_jax.main'),
    f'--config={cell.text}',
    f'--workdir={cell.workdir}',
    *(f'--config.{key}={value}' for key, value in cell.overrides.items()),
  ]


def load(name: str) -> Any:
  """Loads the study of this name or path.

  Raises:
    StudyError: there is none, or its `get_config` is missing or fails.
  """
  path = files.local_path(name, '--study')
  if path.suffix != '.py':
    path = _STUDIES / f'{name}.py'
    if not path.is_file():
      known = ', '.join(sorted(file.stem for file in _STUDIES.glob('*.py')))
      raise StudyError(f'--study={name}: {path} is not there; there is {known}')
  try:
    return config_file.call_file(path, f'--study={path}')
  except UsageError as error:
    raise StudyError(str(error)) from error


def optional(study: Any, key: str) -> Any:
  """Reads a key that studies may leave out."""
  return study[key] if key in study else OPTIONAL[key]


def _validate(study: Any) -> None:
  """Raises StudyError unless every key has a value that can be run."""
  known = {*_KEYS, *OPTIONAL}
  wrong = sorted(({*_KEYS} - {*study.keys()}) | ({*study.keys()} - known))
  if wrong:
    raise StudyError(
      f'study: {", ".join(wrong)} missing or unknown; keys are {_KEYS}, and of'
      f' {tuple(OPTIONAL)} those that it needs'
    )
  unknown = [method for method in study.methods if not _is_method(method)]
  if unknown:
    raise StudyError(
      f'study.methods: no method is called {", ".join(map(repr, unknown))};'
      ' docs/methods.md lists them'
    )
  for key in ('methods', 'seeds'):
    if not study[key] or len(set(study[key])) != len(study[key]):
      raise StudyError(f'study.{key}={study[key]}: must name some, each once')
  for key in ('retries', 'cell_seconds'):
    if study[key] < 0:
      raise StudyError(f'study.{key}={study[key]}: must be at least 0')
  for key, names in (
    ('baseline', (study.baseline,)),
    ('method_overrides', study.method_overrides.keys()),
    ('sweep', optional(study, 'sweep').keys()),
  ):
    if not set(names) <= set(study.methods):
      raise StudyError(f'study.{key}: {", ".join(names)} must be among the methods')


def _is_method(name: str) -> bool:
  try:
    return bool(table.find(name))
  except KeyError:
    return False


def find_source(study: Any) -> Source:
  """Finds the file that all cells start from.

  Raises:
    StudyError: the study names none, two, or one that cannot be read.
  """
  world, text = optional(study, 'world'), optional(study, 'config')
  if text and world:
    raise StudyError(f"study.config={text!r}: it names a world: set study.world=''")
  if text:
    try:
      return sources.find(text)
    except ValueError as error:
      raise StudyError(f'study.config: {files.one_line(error, 300)}') from error
  if world not in WORLDS:
    raise StudyError(
      f'study.world={world!r}: must be one of {tuple(WORLDS)}, or study.config a file'
    )
  return sources.of_world(world)


def make_cells(
  study: Any, output: pathlib.Path, chosen: Mapping[str, Mapping[str, Any]] = {}
) -> list[Cell]:
  """Makes all cells, seed by seed: an interrupted study is balanced.

  Args:
    study: its config.
    output: the study's directory.
    chosen: method -> values that a sweep chose, flattened.

  Raises:
    StudyError: a world, method, key or value that there is not.
  """
  try:
    _validate(study)
    source, out = find_source(study), []
    for seed in study.seeds:
      for method in study.methods:
        path = output / 'runs' / f'{directory_name(method)}-{seed}'
        own = chosen[method] if method in chosen else {}
        out.append(make_cell(study, source, method, seed, own, path))
  except (TypeError, AttributeError) as error:
    what = f'study: a value of another type ({files.one_line(error)})'
    raise StudyError(f'{what}; see experiments/studies/small.py') from error
  return out


def make_cell(
  study: Any,
  source: Source,
  method: str,
  seed: int,
  values: Mapping[str, Any],
  workdir: pathlib.Path,
) -> Cell:
  """Makes one cell; `values` are of this cell and set last.

  Raises:
    StudyError: a key or value that there is not.
  """
  common = study.overrides
  own = study.method_overrides[method] if method in study.method_overrides else {}
  overrides = {**flatten(common), **flatten(own), **values}
  cell = Cell(method, seed, source.text(method, seed), overrides, None, workdir)
  try:
    if set(overrides) & set(_FIXED):
      raise ValueError(f'overrides may not change {" or ".join(_FIXED)}')
    cell.overrides = {**source.settings(method, seed), **overrides}
    cell.config = source.config(method, seed, cell.overrides)
  except (ValueError, KeyError, TypeError) as error:
    raise StudyError(f'study: {cell}: {files.one_line(error, 300)}') from None
  return cell


def flatten(overrides: Any) -> dict[str, Any]:
  """Flattens overrides as a config is, with tuples."""
  flat = config_lib.flatten(overrides)
  return {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}


def directory_name(text: str, also: str = '') -> str:
  """Makes a folder's name of a text; no two share one, in any case.

  Args:
    text: a method's name, say.
    also: characters that stay as they are, beside a-z, 0-9, + and -.
  """
  escaped = f'[^a-z0-9+{re.escape(also)}-]'
  return re.sub(escaped, lambda match: f'_{ord(match[0]):x}_', text)
