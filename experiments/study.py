"""A study: methods x seeds in one world, run to the end and compared.

  python -m experiments.study --study=small [--output=runs/studies/small] [--jobs=2]

`--study` names a file of experiments/studies or a path; its `get_config()` says what is
compared. Every cell is a training run of its own process and directory. The same
command goes on where it stopped: what is done is skipped, what was begun resumes from
its checkpoint, a failed cell is tried again and does not keep the others. It ends in
`sdar_jax.compare` on all finished runs. `study.json` records every cell.

Exit codes: 0 all cells are done, 1 some are not, 2 wrong input.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table
from absl import app, flags

from experiments import alfworld, search_qa, webshop
from sdar_jax import compare, files
from sdar_jax import config as config_lib
from sdar_jax.workdir import Workdir

WORLDS = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}
_STUDIES = pathlib.Path(__file__).with_name('studies')
_GRACE_SECONDS = 60.0  # Between asking a process to stop and killing it.
_POLL_SECONDS = 0.2

_STUDY = flags.DEFINE_string('study', 'small', 'Of experiments/studies, or a path.')
_OUTPUT = flags.DEFINE_string('output', '', "Directory; '' means runs/studies/NAME.")
_JOBS = flags.DEFINE_integer('jobs', 2, 'Cells side by side.', lower_bound=1)


class StudyError(ValueError):
  """A study that cannot be run: one line naming what to change."""


@dataclasses.dataclass
class Cell:
  """One run of a study.

  Attributes:
    method: what the `algo=` argument says.
    workdir: of the run.
    config: what it trains with.
    command: that trains it.
    state: 'waiting', 'running', 'done', 'failed', 'stopped', 'over budget', 'blocked'.
    seconds: that its processes of this study's calls took.
    error: the last line of its log, where it failed.
  """

  method: str
  seed: int
  workdir: pathlib.Path
  config: Any
  command: list[str]
  state: str = 'waiting'
  seconds: float = 0.0
  attempts: int = 0
  exit_code: int | None = None
  error: str = ''

  @property
  def log(self) -> pathlib.Path:
    """What it prints."""
    return self.workdir.with_name(f'{self.workdir.name}.log')

  def check(self) -> None:
    """Sets the state by what its directory holds."""
    run = self.workdir / 'run.json'
    if not run.exists():
      return
    was, now = json.loads(run.read_text()), Workdir(self.workdir, self.config)
    if was['config_digest'] != now.digest:
      self.state = 'blocked'
      self.error = f'{self.workdir} holds a run of another config: choose --output'
    elif (self.workdir / 'eval' / f'{self.config.steps:06d}.json').exists():
      self.state = 'done'


def load(name: str) -> Any:
  """The study of this name or path.

  Raises:
    StudyError: there is none, or it has no `get_config`.
  """
  path = pathlib.Path(name) if name.endswith('.py') else _STUDIES / f'{name}.py'
  if not path.exists():
    known = ', '.join(sorted(file.stem for file in _STUDIES.glob('*.py')))
    raise StudyError(f'--study={name}: {path} is not there; there is {known}')
  spec = importlib.util.spec_from_file_location('study_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise StudyError(f'{path}: has no get_config()')
  return module.get_config()


def make_cells(study: Any, output: pathlib.Path) -> list[Cell]:
  """All cells, seed by seed, so that an interrupted study is balanced.

  Raises:
    StudyError: a world, method, key or value that there is not.
  """
  if study.world not in WORLDS:
    raise StudyError(f'study.world={study.world!r}: must be one of {tuple(WORLDS)}')
  if study.baseline not in study.methods:
    raise StudyError(f'study.baseline={study.baseline!r}: must be one of the methods')
  cells = []
  for seed in study.seeds:
    for method in study.methods:
      argument = f'model=tiny,algo={method},seed={seed}'
      overrides = study.overrides.to_dict()
      try:
        config = WORLDS[study.world].get_config(argument)
        config.update_from_flattened_dict(overrides)
        config_lib.validate(config)
      except (ValueError, KeyError, TypeError) as error:
        raise StudyError(files.one_line(error, 1000)) from None
      workdir = output / 'runs' / f'{_directory(method, study.methods)}-{seed}'
      command = [
        *(sys.executable, '-m', 'sdar_jax.main'),
        f'--config=experiments/{study.world}.py:{argument}',
        f'--workdir={workdir}',
        *(f'--config.{key}={value}' for key, value in overrides.items()),
      ]
      cells.append(Cell(method, seed, workdir, config, command))
  return cells


def _directory(method: str, methods: Sequence[str]) -> str:
  """A name for files; two methods never share one."""
  plain = lambda name: re.sub(r'[^a-z0-9+-]', '_', name)
  alike = [other for other in methods if plain(other) == plain(method)]
  return plain(method) + '_' * alike.index(method)


class Runner:
  """Runs cells in processes, a few side by side, each on cores of its own.

  Args:
    cells: in the order in which they are begun.
    output: where `study.json` goes, and programs that were compiled once.
    jobs: processes at a time.
    retries: of a cell that fails.
    cell_seconds: after which a cell is stopped; 0 is never.
    say: takes a line for people.
  """

  def __init__(
    self,
    cells: Sequence[Cell],
    output: pathlib.Path,
    *,
    jobs: int,
    retries: int,
    cell_seconds: float,
    say: Callable[[str], None],
  ):
    self._cells, self._output, self._say = list(cells), output, say
    self._retries, self._cell_seconds = retries, cell_seconds
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < jobs:
      say(f'{jobs} jobs on {len(cores)} cores: they will share them')
    self._lanes = [cores[i % len(cores) :: jobs] or cores for i in range(jobs)]
    self._running: dict[int, tuple[Cell, subprocess.Popen, float]] = {}
    self._stopping = False

  def stop(self, number: int = 0, frame: Any = None) -> None:
    """Asks all processes to save and stop; begins no other. A signal handler."""
    self._stopping = True
    for _, process, _ in self._running.values():
      process.terminate()

  def run(self) -> None:
    """Until every cell has ended, or `stop` was called and all processes have."""
    waiting = [cell for cell in self._cells if cell.state == 'waiting']
    while self._running or (waiting and not self._stopping):
      for lane in range(len(self._lanes)):
        if lane not in self._running and waiting and not self._stopping:
          self._start(lane, waiting.pop(0))
      time.sleep(_POLL_SECONDS)
      for lane in list(self._running):
        again = self._look_at(lane)
        if again is not None:
          waiting.insert(0, again)
    for cell in waiting:
      cell.state = 'stopped'
    self.record()

  def _start(self, lane: int, cell: Cell) -> None:
    cell.workdir.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    # Seeds of a method share their programs; results are the same to the bit.
    environment.setdefault('JAX_COMPILATION_CACHE_DIR', str(self._output / 'compiled'))
    environment.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
    cores = self._lanes[lane]
    with cell.log.open('ab') as log:
      process = subprocess.Popen(
        cell.command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        start_new_session=True,  # A Ctrl-C reaches it through `stop` only.
      )
    cell.state, cell.attempts = 'running', cell.attempts + 1
    self._running[lane] = (cell, process, time.monotonic())
    self._say(f'{cell.method}, seed {cell.seed}: attempt {cell.attempts}')
    self.record()

  def _look_at(self, lane: int) -> Cell | None:
    """Sees to a process; returns its cell if it is to be tried again."""
    cell, process, began = self._running[lane]
    spent = time.monotonic() - began
    over = bool(self._cell_seconds) and spent > self._cell_seconds
    if process.poll() is None:
      if not over:
        return None
      process.terminate()
      try:
        process.wait(_GRACE_SECONDS)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    del self._running[lane]
    cell.seconds += time.monotonic() - began
    cell.exit_code, cell.state = process.returncode, 'waiting'
    if process.returncode == 0:
      cell.check()
    if cell.state == 'waiting':
      cell.state, cell.error = self._reason(over, process.returncode), _last_line(cell)
    self._say(f'{cell.method}, seed {cell.seed}: {cell.state}, {spent:.0f} s')
    self.record()
    failed = cell.state == 'failed' and not self._stopping
    return cell if failed and cell.attempts <= self._retries else None

  def _reason(self, over: bool, code: int) -> str:
    if over:
      return 'over budget'
    return 'stopped' if self._stopping and code in (0, -signal.SIGTERM) else 'failed'

  def record(self) -> None:
    """Writes study.json."""
    names = ('method', 'seed', 'state', 'seconds', 'attempts', 'exit_code', 'error')
    records = [
      {**{name: getattr(cell, name) for name in names}, 'workdir': str(cell.workdir)}
      for cell in self._cells
    ]
    content = {'schema': 1, 'cores_per_cell': self._lanes, 'cells': records}
    self._output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1)
    files.write_atomic(self._output / 'study.json', text.encode())


def _last_line(cell: Cell) -> str:
  lines = cell.log.read_text(errors='replace').strip().splitlines()
  return lines[-1] if lines else ''


def show(cells: Sequence[Cell], console: rich.console.Console) -> None:
  """Prints a table of the cells."""
  table = rich.table.Table('method', 'seed', 'state', 'seconds', 'error')
  for cell in cells:
    seconds = f'{cell.seconds:.0f}' if cell.seconds else ''
    table.add_row(cell.method, str(cell.seed), cell.state, seconds, cell.error)
  console.print(table)


def run(name: str, output: pathlib.Path, jobs: int) -> int:
  """Runs a study and compares what is done; returns the exit code.

  Raises:
    StudyError: it is not one.
  """
  study = load(name)
  cells = make_cells(study, output)
  for cell in cells:
    cell.check()
  console = rich.console.Console(markup=False, highlight=False)
  runner = Runner(
    cells,
    output,
    jobs=jobs,
    retries=study.retries,
    cell_seconds=study.cell_seconds,
    say=console.print,
  )
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, runner.stop)
  runner.run()
  show(cells, console)
  done = [str(cell.workdir) for cell in cells if cell.state == 'done']
  if any(cell.method == study.baseline and cell.state == 'done' for cell in cells):
    arguments = ['--baseline', study.baseline, '--output', str(output / 'comparison')]
    if compare.main([*done, *arguments]):
      return 1
  return 0 if len(done) == len(cells) else 1


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  del argv
  name = pathlib.Path(_STUDY.value).stem
  output = pathlib.Path(_OUTPUT.value or f'runs/studies/{name}')
  try:
    code = run(_STUDY.value, output, _JOBS.value)
  except (StudyError, OSError) as error:
    print(f'error: {files.one_line(error, 1000)}', file=sys.stderr)
    code = 2
  sys.exit(code)


if __name__ == '__main__':
  app.run(main)
