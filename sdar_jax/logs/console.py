"""What a person sees: a progress display on a terminal, else one line per step."""

import contextlib
import io
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import rich.console
import rich.progress
import rich.table
import rich.text

# Shown in this order where a step has them: name and format.
_SHOWN = (
  ('rollout/success_rate', 'success', '{:.1%}'),
  ('rollout/turns_mean', 'turns', '{:.1f}'),
  ('rollout/valid_action_rate', 'valid', '{:.1%}'),
  ('train/loss', 'loss', '{:.4f}'),
  ('train/gate_open', 'gate open', '{:.1%}'),
  ('train/gate_shut', 'shut', '{:.1%}'),
  ('train/entropy', 'entropy', '{:.3f}'),
  ('perf/step_seconds', 'step', '{:.1f}s'),
)


class Steady(io.TextIOBase):
  """A stream that writes what another can take, and nothing once that is gone.

  A character that its encoding lacks is escaped. A terminal that was closed, a pipe
  that nobody reads or a disk that is full ends the display, not the work.
  """

  def __init__(self, stream: TextIO | None):
    self._stream = stream
    if stream is None:  # What Python makes of a standard output that is closed.
      return
    self.fileno, self.isatty = stream.fileno, stream.isatty

  @property
  def encoding(self) -> str:
    """Of the other stream."""
    return getattr(self._stream, 'encoding', None) or 'utf-8'

  def writable(self) -> bool:
    return True

  def write(self, text: str) -> int:
    safe = text.encode(self.encoding, 'backslashreplace').decode(self.encoding)
    self._try(lambda stream: stream.write(safe))
    return len(text)

  def flush(self) -> None:
    self._try(lambda stream: stream.flush())

  def _try(self, act: Callable[[TextIO], Any]) -> None:
    if self._stream is None:
      return
    try:
      act(self._stream)
    except (OSError, ValueError):  # ValueError: it is closed.
      self._give_up(self._stream)

  def _give_up(self, stream: TextIO) -> None:
    self._stream = None
    with contextlib.suppress(OSError, ValueError):
      # What the interpreter flushes at its end would be an error once more.
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream.fileno())
      os.close(nowhere)


class Console:
  """Shows a run's progress; use it as a context manager for the live display.

  Args:
    steps: number of steps of the whole run.
    stream: where to write; a terminal gets the live display. None shows nothing.
  """

  def __init__(self, steps: int, stream: TextIO | None):
    self._steps = steps
    self._console = rich.console.Console(
      file=Steady(stream), markup=False, highlight=False
    )
    self._live = rich.progress.Progress(
      rich.progress.TextColumn('step'),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(bar_width=20),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn('{task.description}', markup=False),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._live.add_task('', total=steps)
    self._said: set[str] = set()

  def __enter__(self) -> 'Console':
    self._live.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._live.stop()

  def step(self, step: int, values: Mapping[str, Any]) -> None:
    """Shows the numbers of a step that has been done."""
    text = summary(values)
    self._live.update(self._task, completed=step, description=text)
    if not self._console.is_terminal:
      self.line(f'step {step}/{self._steps}  {text}')

  def line(self, text: str) -> None:
    """Prints one line; control characters are escaped."""
    safe = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    self._console.print(rich.text.Text(safe), soft_wrap=True)

  def once(self, kind: str, text: str) -> None:
    """Prints a line the first time that there is one of its kind; '' is none."""
    if text and kind not in self._said:
      self._said.add(kind)
      self.line(text)

  def table(self, table: rich.table.Table) -> None:
    """Prints a table, e.g. of evaluations before and after training."""
    self._console.print(table)


def summary(values: Mapping[str, Any]) -> str:
  """The few numbers that fit a line."""
  return '  '.join(
    f'{label} {form.format(values[name])}'
    for name, label, form in _SHOWN
    if name in values and not math.isnan(values[name])
  )
