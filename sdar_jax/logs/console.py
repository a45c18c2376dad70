"""Shows a run to people: a line per step, above a live line. No JAX."""

import collections
import logging
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

from sdar_jax.process.terminal import Steady

# The numbers of a step's line, in this order where a step has them.
_SHOWN = {
  'rollout/success_rate': 'success {:.1%}',
  'rollout/turns_mean': 'turns {:.1f}',
  'rollout/valid_action_rate': 'valid {:.1%}',
  'train/loss': 'loss {:.4f}',
  'train/gate_open': 'gate open {:.1%}',
  'train/gate_shut': 'shut {:.1%}',
  'train/entropy': 'entropy {:.3f}',
  'perf/step_seconds': '{:.1f} s',
  'perf/compile_seconds': 'compiled {:.1f} s',
}
_WORTH_SAYING = {'perf/compile_seconds': 0.1}  # What is below is not shown.
# What a line does without where a terminal is narrow, the first first.
_DISPENSABLE = (
  'train/loss',
  'rollout/turns_mean',
  'rollout/valid_action_rate',
  'train/entropy',
  'perf/compile_seconds',
  'perf/step_seconds',
)
_SPARE = 4  # Columns that the live line leaves free, for the ^C that a terminal echoes.
_BAR, _SHORTEST_BAR = 20, 4  # Columns.
_REFRESHES = 2  # Of the live line, per second.
_PACE_STEPS = 10  # The latest steps, whose mean length the time left is made of.


class _Phase(NamedTuple):
  """Describes a run's present activity."""

  name: str
  start: float
  played: int = 0
  wanted: int = 0


class Console:
  """Shows a run's progress.

  As a context manager it holds the live line of a terminal.

  Args:
    steps: of the whole run; 0 where there is nothing but an evaluation.
    stream: where to write; a terminal gets the live line. None shows nothing.
    now: the clock, in seconds.
  """

  def __init__(
    self, steps: int, stream: TextIO | None, now: Callable[[], float] = time.monotonic
  ):
    self._steps, self._now = steps, now
    self._phase = _Phase('', now())
    self._done = 0
    self._ends: collections.deque[float] = collections.deque(maxlen=_PACE_STEPS + 2)
    self._redirected: list[tuple[logging.StreamHandler, TextIO]] = []
    self._said: set[str] = set()
    steady = Steady(stream, display=True)
    # Nothing in the environment makes a terminal of a file, as FORCE_COLOR would.
    self._console = rich.console.Console(
      file=steady,
      force_terminal=_is_terminal(steady),
      force_jupyter=False,
      markup=False,
      highlight=False,
    )
    self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
    self._live = rich.live.Live(
      console=self._console,
      get_renderable=self.status,
      refresh_per_second=_REFRESHES,
      transient=True,
      redirect_stderr=_is_terminal(sys.stderr),
    )

  def __enter__(self) -> 'Console':
    if self._is_live:
      self._live.start(refresh=True)
      # A process that is killed now leaves a terminal with a cursor.
      self._console.show_cursor(True)
      self._redirect_logging()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._live.stop()
    for handler, stream in self._redirected:
      handler.setStream(stream)
    self._redirected = []

  def _redirect_logging(self) -> None:
    """Prints log records of the terminal above the live line."""
    for handler in logging.getLogger().handlers:
      if isinstance(handler, logging.StreamHandler) and _is_terminal(handler.stream):
        self._redirected.append((handler, handler.stream))
        handler.setStream(sys.stderr)

  def resume(self, step: int) -> None:
    """Sets the number of steps done before this start."""
    self._done = step

  def phase(self, name: str) -> None:
    """Shows the beginning of a phase."""
    self._phase = _Phase(name, self._now())
    if not self._ends:
      self._ends.append(self._phase.start)

  def episodes(self, played: int, wanted: int) -> None:
    """Shows the progress of the present phase."""
    self._phase = self._phase._replace(played=played, wanted=wanted)

  def step(
    self, step: int, values: Mapping[str, Any], warning: str | None = None
  ) -> None:
    """Shows the numbers of a finished step, and a warning about it."""
    self._done = step
    self._ends.append(self._now())
    self.phase('save')
    head = f'step {step}/{self._steps}  '
    if self._is_live:
      self.line(head + summary(values, self._console.width - len(head)))
      if self._live.is_started:
        self._live.refresh()
    else:
      left = self._left() if step < self._steps else None
      rest = '' if left is None else f'  left {_clock(left)}'
      self.line(head + summary(values) + rest)
    if warning is not None:
      self.line(f'step {step}: warning: {warning}')

  def line(self, text: str) -> None:
    """Prints one line; control characters are escaped."""
    safe = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    self._console.print(rich.text.Text(safe), soft_wrap=not self._is_live)

  def faults(self, step: int, counts: Mapping[str, int]) -> None:
    """Prints the faults of environments by kind, if there were any."""
    if counts:
      said = ', '.join(f'{kind} {count}' for kind, count in counts.items())
      self.line(f'step {step}: environment faults: {said}')

  def aside(self, place: pathlib.Path | None) -> None:
    """Says where the files of an earlier start are now; None is nowhere."""
    if place is not None:
      self.line(f'no checkpoint: what was here is now in {place}')

  def once(self, kind: str, text: str) -> None:
    """Prints the first line of its kind; '' is none."""
    if text and kind not in self._said:
      self._said.add(kind)
      self.line(text)

  def table(self, table: rich.table.Table) -> None:
    """Prints a table, e.g. of evaluations before and after training."""
    self._console.print(table)

  def status(self) -> rich.console.RenderableType:
    """Formats the live line: steps, bar, time left, phase, episodes."""
    phase, width = self._phase, self._console.width - _SPARE
    done, total, head = self._done, self._steps, f'step {self._done}/{self._steps}'
    if not self._steps:
      done, total, head = phase.played, phase.wanted, ''
    tail = f'ETA {_clock(self._left())}  {phase.name}'
    if phase.wanted:
      tail += f' {phase.played}/{phase.wanted} episodes'
    tail += f' {_clock(self._now() - phase.start)}'
    room = min(_BAR, width - len(head) - len(tail) - 2)
    if room < _SHORTEST_BAR:
      return rich.text.Text(f'{head} {tail}'[: max(width, 1)])
    line = rich.table.Table.grid(padding=(0, 1))
    bar = rich.progress_bar.ProgressBar(total or 1, done, room)
    line.add_row(head, bar, tail) if head else line.add_row(bar, tail)
    return line

  def _left(self) -> float | None:
    """Estimates the seconds until the run's end; None without any step."""
    now, phase = self._now(), self._phase
    if self._done >= self._steps:  # At most an evaluation is left.
      spent = now - phase.start
      played = phase.played
      return spent * (phase.wanted - played) / played if played else None
    ends = list(self._ends)
    if len(ends) < 2:
      return None
    # A first step compiles and evaluates: it says little where there are others.
    known = ends[1:] if len(ends) > 2 else ends
    pace = (known[-1] - known[0]) / (len(known) - 1)
    return max(0.0, (self._steps - self._done) * pace - (now - ends[-1]))


def summary(values: Mapping[str, Any], width: int | None = None) -> str:
  """Formats the numbers of a step, in at most `width` columns if given."""
  parts = {
    name: form.format(values[name])
    for name, form in _SHOWN.items()
    if values.get(name, math.nan) >= _WORTH_SAYING.get(name, -math.inf)
  }
  for name in _DISPENSABLE:
    if width is None or len('  '.join(parts.values())) <= width:
      break
    parts.pop(name, None)
  return '  '.join(parts.values())


def _is_terminal(stream: Any) -> bool:
  try:
    return stream.isatty()
  except (AttributeError, ValueError):  # None, or it is closed.
    return False


def _clock(seconds: float | None) -> str:
  """Formats a duration as h:mm:ss."""
  if seconds is None:
    return '-:--:--'
  minutes, rest = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02}:{rest:02}'
