"""What a person sees: a progress display on a terminal, else one line per step."""

import math
from collections.abc import Mapping, Sequence
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


class Console:
  """Shows a run's progress; use it as a context manager for the live display.

  Args:
    steps: number of steps of the whole run.
    stream: where to write; a terminal gets the live display.
  """

  def __init__(self, steps: int, stream: TextIO):
    self._steps = steps
    self._console = rich.console.Console(file=stream, markup=False, highlight=False)
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


def results_table(reports: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """Success by task type, with n and the 95 % interval; one column per report.

  Args:
    reports: heading -> report with `n`, `success_rate`, `interval`, `by_type`,
      `mean_turns`, `valid_action_rate`, `panel` and `panel_digest`.
  """
  first = next(iter(reports.values()))
  table = rich.table.Table(title=f'{first["panel"]}  {first["panel_digest"][:12]}')
  table.add_column('tasks')
  for heading in reports:
    table.add_column(heading, justify='right')
  columns = list(reports.values())
  types = sorted({name for report in columns for name in report['by_type']})
  table.add_row('all', *map(_success, columns))
  for name in types:
    table.add_row(name, *(_success(report['by_type'].get(name)) for report in columns))
  table.add_section()
  if all('mean_score' in report for report in columns):
    _add(table, 'mean score', '{:.3f}', 'mean_score', columns)
  _add(table, 'mean turns', '{:.1f}', 'mean_turns', columns)
  _add(table, 'valid actions', '{:.1%}', 'valid_action_rate', columns)
  return table


def _success(report: Mapping[str, Any] | None) -> str:
  if report is None:
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
  table.add_row(label, *(form.format(report[key]) for report in columns))
