"""Makes the cells of a study: what they train, where, and what is there."""

import dataclasses
import pathlib
import re
import sys
from typing import Any

from experiments import alfworld, arguments, search_qa, webshop
from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.cli import config_file
from sdar_jax.process.flags import UsageError
from sdar_jax.storage import workdir as workdir_lib

WORLDS = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}
_STUDIES = pathlib.Path(__file__).with_name('studies')
_KEYS = (
  *('world', 'methods', 'seeds', 'baseline', 'overrides', 'method_overrides'),
  *('retries', 'cell_seconds'),
)
_FIXED = ('seed', 'algorithm.name')  # A cell's identity, which no override changes.
# Reports of one study are compared: the panel may not change between two calls.
_HARMLESS = (*(key for key in workdir_lib.HARMLESS if key != 'eval'), 'eval.every')


class StudyError(ValueError):
  """A study that cannot be run: one line naming what to change."""


@dataclasses.dataclass
class Cell:
  """One run of a study.

  Attributes:
    method: what the `algo=` argument says.
    overrides: flattened keys of the run's config, and their values.
    config: what it trains with.
    workdir: of the run.
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
  world: str
  overrides: dict[str, Any]
  config: Any
  workdir: pathlib.Path
  state: str = 'waiting'
  seconds: float = 0.0
  attempts: int = 0
  past: tuple[float, int] = (0.0, 0)
  exit_code: int | None = None
  cores: list[int] = dataclasses.field(default_factory=list)
  error: str = ''

  @property
  def argument(self) -> str:
    """Spells what follows the colon of --config."""
    return f'model=tiny,algo={self.method},seed={self.seed}'

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
    return f'{self.method}, seed {self.seed}'


def training_command(cell: Cell) -> list[str]:
  """Makes the command that trains a cell."""
  config = WORLDS[cell.world].__file__  # Not one of its name where it is started.
  return [
    *(sys.executable, '-m', 'sdar_jax.main'),
    f'--config={config}:{cell.argument}',
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


def _validate(study: Any) -> None:
  """Raises StudyError unless every key has a value that can be run."""
  wrong = sorted(set(_KEYS) ^ set(study.keys()))
  if wrong:
    raise StudyError(f'study: {", ".join(wrong)} missing or unknown; keys are {_KEYS}')
  if study.world not in WORLDS:
    raise StudyError(f'study.world={study.world!r}: must be one of {tuple(WORLDS)}')
  unknown = [method for method in study.methods if not _is_method(method)]
  if unknown:
    raise StudyError(
      f'study.methods: no method is called {", ".join(map(repr, unknown))}; README'
      ' lists them'
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
  ):
    if not set(names) <= set(study.methods):
      raise StudyError(f'study.{key}: {", ".join(names)} must be among the methods')


def _is_method(name: str) -> bool:
  try:
    return arguments.parse(f'algo={name}')['algo'] == name
  except ValueError:
    return False


def make_cells(study: Any, output: pathlib.Path) -> list[Cell]:
  """Makes all cells, seed by seed: an interrupted study is balanced.

  Raises:
    StudyError: a world, method, key or value that there is not.
  """
  try:
    _validate(study)
  except (TypeError, AttributeError) as error:
    what = f'study: a value of another type ({files.one_line(error)})'
    raise StudyError(f'{what}; see experiments/studies/small.py') from error
  cells = []
  for seed in study.seeds:
    for method in study.methods:
      own = study.method_overrides.get(method, {})
      overrides = {**_flatten(study.overrides), **_flatten(own)}
      path = output / 'runs' / f'{directory_name(method)}-{seed}'
      cell = Cell(method, seed, study.world, overrides, None, path)
      try:
        if set(overrides) & set(_FIXED):
          raise ValueError(f'overrides may not change {" or ".join(_FIXED)}')
        cell.config = WORLDS[study.world].get_config(cell.argument).lock()
        cell.config.update_from_flattened_dict(overrides)
        config_lib.validate(cell.config)
      except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f'study: {cell}: {files.one_line(error, 300)}') from None
      cells.append(cell)
  return cells


def _flatten(overrides: Any) -> dict[str, Any]:
  flat = config_lib.flatten(overrides)
  return {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}


def directory_name(method: str) -> str:
  """Makes a folder's name of a method's; no two share one, in any case."""
  return re.sub('[^a-z0-9+-]', lambda match: f'_{ord(match[0]):x}_', method)
