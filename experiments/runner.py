"""Runs the cells of a study: processes, their cores, budgets and record."""

import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from experiments import cells as cells_lib
from experiments import sweep
from experiments.cells import Cell, StudyError
from sdar_jax import compare, files
from sdar_jax.storage import workdir as workdir_lib

_GRACE_SECONDS = 60.0  # Between asking a process to stop and killing it.
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # Of Linux' prctl: the signal that follows the parent's death.
# What a process that was asked to stop ends with: in order, before it could listen,
# when asked twice, killed.
_STOPPED = (0, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL)
_CONFINES = hasattr(os, 'sched_setaffinity')  # Linux does.


@dataclasses.dataclass
class _Process:
  """Holds the process of a cell.

  Attributes:
    began: when it was started, s.
    log_start: bytes of the log that earlier processes wrote.
    asked: when it was told to stop, s.
    over: whether that was for its budget.
  """

  cell: Cell
  popen: subprocess.Popen
  began: float
  log_start: int
  asked: float | None = None
  over: bool = False

  def ask(self) -> None:
    """Tells it to save and stop; a second time, to stop."""
    self.popen.terminate()
    self.asked = self.asked or time.monotonic()

  def last_line(self) -> str:
    """Reads the last line that it printed."""
    text = self.cell.log.read_bytes()[self.log_start :].decode(errors='replace')
    return (text.strip().splitlines() or [''])[-1]


def share_out(cores: Sequence[int], jobs: int) -> list[list[int]]:
  """Shares cores out among jobs: numbers depend on how many each has."""
  size = max(1, len(cores) // jobs)
  blocks = max(1, len(cores) // size)
  return [list(cores[i % blocks * size :][:size]) for i in range(jobs)]


class Runner:
  """Runs cells in processes, a few side by side, each on cores of its own.

  Args:
    cells: in the order in which they are begun.
    output: where `study.json` goes, and programs that were compiled once.
    jobs: processes at a time.
    retries: of a cell that fails.
    cell_seconds: that a cell may take in one call, after which it is stopped; 0 is no
      limit.
    say: takes a line for people.
    command: that trains a cell.
    name: of the list of their records in `study.json`.
    beside: what else that says.
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
    command: Callable[[Cell], list[str]] = cells_lib.training_command,
    name: str = 'cells',
    beside: Mapping[str, Any] | None = None,
  ):
    self._cells, self._output, self._say = list(cells), output, say
    self._retries, self._cell_seconds = retries, cell_seconds
    self._command, self._name, self._beside = command, name, dict(beside or {})
    self._cores = sorted(os.sched_getaffinity(0)) if _CONFINES else []
    if 0 < len(self._cores) < jobs:
      say(f'{jobs} jobs on {len(self._cores)} cores: they will share them')
    self._lanes = share_out(self._cores, jobs)
    # Seeds of a method share compiled programs, which changes no number.
    self._environment = {
      'JAX_COMPILATION_CACHE_DIR': str(output / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
    }
    for name in self._environment.keys() & os.environ.keys():
      self._environment[name] = os.environ[name]
    self._running: dict[int, _Process] = {}
    self.stopping = False

  def stop(self, number: int = 0, frame: Any = None) -> None:
    """Asks all processes to stop and begins no other; handles signals."""
    self.stopping = True
    for process in self._running.values():
      process.ask()

  def run(self) -> None:
    """Runs until every cell has ended, or `stop` ended all processes."""
    waiting = [cell for cell in self._cells if cell.state == 'waiting']
    while self._running or (waiting and not self.stopping):
      for lane in range(len(self._lanes)):
        if lane not in self._running and waiting and not self.stopping:
          self._start(lane, waiting.pop(0))
      time.sleep(_POLL_SECONDS)
      for lane, process in list(self._running.items()):
        self._limit(process)
        if process.popen.poll() is not None:
          del self._running[lane]
          if self._finish(process):
            waiting.insert(0, process.cell)
    for cell in waiting:
      cell.state = 'stopped'
    self.record()

  def _start(self, lane: int, cell: Cell) -> None:
    cell.workdir.parent.mkdir(parents=True, exist_ok=True)
    cell.state, cell.attempts = 'running', cell.attempts + 1
    cell.cores = self._lanes[lane]
    with cell.log.open('ab') as log:
      start = log.tell()
      try:
        if cell.cores:  # A process is born where its parent's thread is.
          os.sched_setaffinity(0, cell.cores)
        popen = subprocess.Popen(
          self._command(cell),
          stdout=log,
          stderr=subprocess.STDOUT,
          stdin=subprocess.DEVNULL,
          env={**os.environ, **self._environment},
          start_new_session=True,  # A Ctrl-C reaches it through `stop` only.
          preexec_fn=_die_with(os.getpid()),
        )
      finally:
        if cell.cores:
          os.sched_setaffinity(0, self._cores)
    self._running[lane] = _Process(cell, popen, time.monotonic(), start)
    if self.stopping:  # The signal came before it could be passed on.
      self._running[lane].ask()
    self._say(f'{cell}: attempt {cell.attempts}')
    self.record()

  def _limit(self, process: _Process) -> None:
    """Holds a process to its budget, and one that does not stop to its word."""
    now = time.monotonic()
    spent = process.cell.seconds + now - process.began
    if process.asked is None and 0 < self._cell_seconds < spent:
      process.over = True
      process.ask()
    if process.asked is not None and now - process.asked > _GRACE_SECONDS:
      if process.popen.poll() is None:
        os.killpg(process.popen.pid, signal.SIGKILL)  # And what it has started.

  def _finish(self, process: _Process) -> bool:
    """Records the end of a process; returns whether to try again."""
    cell, code = process.cell, process.popen.returncode
    spent = time.monotonic() - process.began
    cell.seconds, cell.exit_code, cell.error = cell.seconds + spent, code, ''
    cell.state = 'waiting'
    if code == 0:
      cell.check()
    if cell.state == 'waiting':
      cell.state, cell.error = self._reason(process), process.last_line()
    counts = sum(c.state == 'done' for c in self._cells), len(self._cells)
    why = f' with exit code {code} ({cell.error})' if cell.state == 'failed' else ''
    self._say(f'{cell}: {cell.state}{why}, {spent:.0f} s; {counts[0]} of {counts[1]}')
    self.record()
    again = cell.state == 'failed' and cell.attempts <= self._retries
    return again and not self.stopping

  def _reason(self, process: _Process) -> str:
    code = process.popen.returncode
    if process.over:
      return 'over budget'
    stopped = code == 0 or (process.asked is not None and code in _STOPPED)
    return 'stopped' if stopped else 'failed'

  def record(self) -> None:
    """Writes study.json."""
    content = {'schema': 1, 'cores_per_cell': self._lanes}
    content['environment'] = self._environment
    content |= {**self._beside, self._name: [cell.record() for cell in self._cells]}
    text = json.dumps(content, indent=1)
    files.write_atomic(self._output / 'study.json', text.encode())


def _die_with(parent: int) -> Callable[[], None] | None:
  """Makes what a child does first, so that none survives its parent.

  Its locks would keep the next call of the study from going on. Where the system has no
  such request (macOS), they do until it ends.
  """
  if not sys.platform.startswith('linux'):
    return None
  prctl = ctypes.CDLL(None, use_errno=True).prctl  # Not looked up in the child.

  def ask() -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It was killed a moment ago.
      os.kill(os.getpid(), signal.SIGKILL)

  return ask


def show(cells: Sequence[Cell], console: rich.console.Console) -> None:
  """Prints a table of the cells."""
  table = rich.table.Table('method', 'seed', 'state', 'seconds', 'error')
  for cell in cells:
    seconds = cell.record()['seconds']
    row = cell.method, str(cell.seed), cell.state, f'{seconds:.0f}', cell.error
    table.add_row(*row)
  console.print(table)


def run(
  study: Any,
  output: pathlib.Path,
  jobs: int,
  command: Callable[[Cell], list[str]] = cells_lib.training_command,
) -> int:
  """Runs a study and compares what is done; returns the exit code.

  Args:
    study: its config.
    output: directory of its runs, record and comparison.
    jobs: cells side by side.
    command: that trains a cell.

  Raises:
    StudyError: it is not one.
    WorkdirError: another call is at work in `output`.
  """
  cells = cells_lib.make_cells(study, output)
  tuning = sweep.make_cells(study, output)
  if tuning:
    sweep.check_splits(cells, tuning)
  console = rich.console.Console(markup=False, highlight=False, soft_wrap=True)
  limits = {'retries': study.retries, 'cell_seconds': study.cell_seconds}
  how = {'jobs': jobs, 'say': console.print, 'command': command, **limits}
  with workdir_lib.Workdir(output, study):  # One call at a time.
    past, beside = _past(output), {}
    if tuning:
      _look_back(tuning, past, console)
      named = {'name': 'sweep_cells', 'beside': {'cells': past['cells']}}
      stopped = _play(Runner(tuning, output, **how, **named))
      choices = sweep.choose(tuning)
      sweep.show(choices, console)
      beside['sweep'] = {name: choice.record() for name, choice in choices.items()}
      beside['sweep_cells'] = [cell.record() for cell in tuning]
      if stopped:
        return _stopped(tuning, console)
      best = {name: choice.best for name, choice in choices.items()}
      cells = cells_lib.make_cells(study, output, best)
    _look_back(cells, past, console)
    _hold_back({cell.method for cell in tuning} - {*beside.get('sweep', {})}, cells)
    stopped = _play(Runner(cells, output, **how, beside=beside))
    show(cells, console)
    if stopped:
      return _stopped(cells, console)
    compared = _compare(cells, study.baseline, output, console)
    if tuning and compared:
      sweep.write(choices, output / 'comparison' / 'sweep.json')
  return 0 if compared and {cell.state for cell in cells} == {'done'} else 1


def _play(runner: Runner) -> bool:
  """Runs all cells; returns whether it was asked to stop."""
  signals = signal.SIGINT, signal.SIGTERM
  earlier = [signal.signal(number, runner.stop) for number in signals]
  try:
    runner.run()
  except OSError:  # A full disk, say: no process goes on unwatched.
    runner.stop()
    raise
  finally:
    for number, handler in zip(signals, earlier, strict=True):
      signal.signal(number, handler)
  return runner.stopping


def _stopped(cells: Sequence[Cell], console: rich.console.Console) -> int:
  console.print('stopped on request: the same command goes on')
  return 0 if {cell.state for cell in cells} <= {'done', 'stopped'} else 1


def _hold_back(methods: Collection[str], cells: Sequence[Cell]) -> None:
  """Keeps cells without a chosen number from being run."""
  for cell in cells:
    if cell.method in methods:
      cell.state, cell.error = 'blocked', 'its sweep is not done'


def _past(output: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """Reads the records that earlier calls left."""
  path = output / 'study.json'
  try:
    content = files.read_json(path) if path.exists() else {'cells': []}
    past = {'cells': content['cells'], 'sweep_cells': content.get('sweep_cells', [])}
    for record in [*past['cells'], *past['sweep_cells']]:
      cell = Cell('', 0, '', {}, None, pathlib.Path(record['workdir']))
      cell.remember(record)
      cell.record()  # Which adds to what was remembered.
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    what = files.one_line(error)
    raise StudyError(f'{path} is damaged ({what}): delete it to go on') from error
  return past


def _look_back(
  cells: Sequence[Cell],
  past: Mapping[str, Sequence[dict[str, Any]]],
  console: rich.console.Console,
) -> None:
  """Finds what earlier calls left, and says so."""
  records = {one['workdir']: one for listed in past.values() for one in listed}
  for cell in cells:
    if cell.workdir.exists() and str(cell.workdir) in records:
      cell.remember(records[str(cell.workdir)])
    cell.check()
    if cell.state == 'blocked':
      console.print(f'{cell}: blocked: {cell.error}')
  done = sum(cell.state == 'done' for cell in cells)
  if done:
    console.print(f'{done} of {len(cells)} cells are done already')


def _compare(
  cells: Sequence[Cell],
  baseline: str,
  output: pathlib.Path,
  console: rich.console.Console,
) -> bool:
  """Compares the finished runs; returns whether they could be."""
  done = [cell for cell in cells if cell.state == 'done']
  if all(cell.method != baseline for cell in done):
    console.print(f'no run of the baseline {baseline} is done: nothing to compare with')
    return False
  options = ['--baseline', baseline, '--output', str(output / 'comparison')]
  steps = {cell.config.steps for cell in done}
  if len(steps) == 1:  # A run may have gone further in an earlier call.
    options += ['--step', str(*steps)]
  return compare.main([*(str(cell.workdir) for cell in done), *options]) == 0
