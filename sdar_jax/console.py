"""What a person sees: a progress display on a terminal, else one line per step."""

import contextlib
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import rich.console
import rich.progress
import rich.table
import rich.text

from sdar_jax.panels import composed

# What columns of one table share.
_SETTINGS = (
  *('panel_digest', 'world_digest', 'with_skills', 'attempts', 'seed', 'temperature'),
  *('top_p', 'top_k', 'max_prompt_tokens', 'max_response_tokens'),
)
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

  def results(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints evaluation reports side by side, e.g. of before and after training."""
    self._console.print(results_table(reports))


def summary(values: Mapping[str, Any]) -> str:
  """The few numbers that fit a line."""
  return '  '.join(
    f'{label} {form.format(values[name])}'
    for name, label, form in _SHOWN
    if name in values and not math.isnan(values[name])
  )


def evaluated(report: Mapping[str, Any]) -> str:
  """An evaluation in one line: which panel, what came out, what was lost."""
  lost = f', {report["faults"]} episodes lost to faults' if report['faults'] else ''
  return f'{_panel(report)}: success {_success(report)}{lost}'


def results_table(reports: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """Success by task type, with n and the 95 % interval; one column per report.

  Args:
    reports: heading -> report as `evaluate.evaluate` makes it.

  Raises:
    ValueError: the reports are not of one panel and the same settings.
  """
  columns = list(reports.values())
  settings = [{k: r[k] for k in _SETTINGS} for r in columns]
  if any(other != settings[0] for other in settings):
    raise ValueError(f'{", ".join(reports)}: of other panels or settings')
  table = rich.table.Table(title=_panel(columns[0]), caption=_caption(columns[0]))
  table.add_column('tasks')
  for heading in reports:
    table.add_column(heading, justify='right')
  # A type of which nothing was played has its row, too.
  types = sorted(kind for kind, count in columns[0]['composition'].items() if count)
  table.add_row('all', *map(_success, columns))
  for name in types:
    table.add_row(name, *(_success(report['by_type'].get(name)) for report in columns))
  table.add_section()
  if all('mean_score' in report for report in columns):
    _add(table, 'mean score', '{:.3f}', 'mean_score', columns)
  _add(table, 'mean turns', '{:.1f}', 'mean_turns', columns)
  _add(table, 'valid actions', '{:.1%}', 'valid_action_rate', columns)
  _add(table, 'lost to faults', '{}', 'faults', columns)
  return table


def _panel(report: Mapping[str, Any]) -> str:
  return f'{report["panel"]}  {report["panel_digest"][:12]}'


def _caption(report: Mapping[str, Any]) -> str:
  skills = 'with skills' if report['with_skills'] else 'without skills'
  return (
    f'{composed(report["composition"])}\n{report["attempts"]} x each, temperature'
    f' {report["temperature"]}, top_p {report["top_p"]}, top_k {report["top_k"]},'
    f' {skills}; 95 % intervals for new tasks drawn like these, treated as independent'
  )


def _success(report: Mapping[str, Any] | None) -> str:
  if report is None or not report['n']:
    return '-'
  low, high = report['interval']
  return f'{report["success_rate"]:.1%} [{low:.1%}, {high:.1%}] n={report["n"]}'


def _add(
  table: rich.table.Table,
  label: str,
  form: str,
  key: str,
  columns: Sequence[Mapping[str, Any]],
) -> None:
  values = [report[key] for report in columns]
  table.add_row(label, *('-' if v is None else form.format(v) for v in values))
