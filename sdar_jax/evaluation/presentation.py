"""Shows a comparison: as text, Markdown, CSV and on a terminal. No JAX."""

import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.table

from sdar_jax import files
from sdar_jax.evaluation import panels, plot, results
from sdar_jax.evaluation.comparison import (
  ComparedRow,
  Comparison,
  Paired,
  success_rate,
)
from sdar_jax.evaluation.runs import Evaluation
from sdar_jax.evaluation.statistics import Estimate

_HEADINGS = (
  'method (seeds)',
  'mean',
  'area',
  'difference',
  'P(win)',
  'detects',
  'verdict',
)
_UNBROKEN = ('detects', 'verdict')
_STEPS = 4  # Of a single run that are shown; of more the first, a middle and the last.
_PADDING = 3  # Characters that a column of the terminal's table needs besides.
_DISPENSABLE = ('P(win)', 'area')  # Where a terminal is narrow, in this order.


def headings(metric: str) -> list[str]:
  """Names the columns of the table of methods."""
  return [metric if heading == 'mean' else heading for heading in _HEADINGS]


def cells(row: ComparedRow) -> list[str]:
  """Writes a row of that table as text, in the order of its headings."""
  name = f'{row.method} ({len(row.seeds)})'
  # Of one evaluation there is no curve.
  area = _percent(row.area) if len(row.curve) > 1 else ''
  out = [name, _percent(row.final), area]
  if row.paired is None:
    return out + [''] * (len(_HEADINGS) - len(out))
  pair = row.paired
  chance, low, high = pair.improvement
  return [
    *out,
    _percent(pair.difference, sign='+'),
    f'{chance:.2f} [{low:.2f}, {high:.2f}]',
    '-' if math.isnan(pair.detectable) else f'{100 * pair.detectable:.1f}',
    pair.verdict,
  ]


def _percent(estimate: Estimate, sign: str = '') -> str:
  mean = f'{100 * estimate.mean:{sign}.1f}'
  if math.isnan(estimate.low):
    return mean
  return f'{mean} [{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]'


def run_headings(comparison: Comparison) -> list[str]:
  """Names the columns of single runs: first, middle and last evaluation."""
  return ['method', 'seed', *map(_at, _few(comparison.steps))]


def run_cells(comparison: Comparison) -> list[list[str]]:
  """Writes those rows: success in % with its interval for new tasks."""
  return [
    [
      method,
      str(run.seed),
      *(_rate(run.evaluations[step]) for step in _few(comparison.steps)),
    ]
    for method, members in comparison.methods.items()
    for run in members
  ]


def _few(steps: Sequence[int]) -> Sequence[int]:
  if len(steps) <= _STEPS:
    return steps
  return steps[0], steps[len(steps) // 2], steps[-1]


def _at(step: int) -> str:
  return f'step {step}' if step else 'before'


def _rate(evaluation: Evaluation) -> str:
  mean, low, high = (100 * part for part in success_rate(evaluation))
  return f'{mean:.1f} % [{low:.1f}, {high:.1f}]'


def title(comparison: Comparison) -> str:
  """Says in one line what was compared."""
  e = comparison.evaluation
  composition = panels.composed(e.composition)
  played = f'{len(comparison.tasks)} tasks x {e.attempts}'
  if e.panel == results.UNKNOWN:
    where = f'{played} of a panel that no {results.ABOUT} names'
  else:
    panel = f'panel {e.panel} ({e.panel_digest[:12]})'
    where = f'{panel}, {played}, temperature {e.temperature}'
  return f'step {comparison.step}, {where}; {composition}'


def notes(comparison: Comparison) -> list[str]:
  """Says how to read the table, one line each."""
  first, last = comparison.steps[0], comparison.steps[-1]
  area = f' Area: under the learning curve from step {first} to {last}, as its mean'
  out = [
    f'Mean: in %, at step {comparison.step} of every run: none is taken at its best.'
    + (f'{area} height.' if first < last else ''),
    'Brackets: 95 % intervals for new seeds and new tasks drawn like these (two-way'
    ' random effects, few-seed degrees of freedom), tasks treated as independent: where'
    ' several share a room, a product or a person, those of levels are somewhat too'
    ' narrow. With one seed there is none.',
    'Single runs: intervals for new tasks drawn like these, of these weights'
    ' (Wilson; attempts at one task are no further tasks).',
  ]
  others = max(
    (row.paired.comparisons for row in comparison.rows if row.paired), default=0
  )
  if not others:
    return out
  out += [
    f'Difference: method minus {comparison.baseline} on the same seeds and tasks, in'
    ' percentage points. The verdict asks that its interval excludes 0, and that'
    ' flipping the signs of tasks, the seeds as they are, does so too (p < 0.05).',
    f'P(win): chance that a new seed beats a new seed of {comparison.baseline} on'
    ' this panel, ties half (Mann-Whitney).',
    'Detects: the true difference, in points, that these seeds and tasks find with'
    ' probability 0.8 at the 5 % level, if the variances are those seen here; few seeds'
    ' tell little of theirs.',
  ]
  if others > 1:
    out.append(
      f'{others} comparisons: intervals and what is detected are those of each by'
      ' itself. A verdict that would not hold at 5 % divided by their number'
      ' (Bonferroni) is called uncorrected.'
    )
  return out


def markdown(comparison: Comparison) -> str:
  """Writes tables, notes and warnings as Markdown."""
  lines = ['# Comparison', '', f'{_escape(title(comparison))}.', '']
  world = comparison.evaluation.world_digest
  lines += [f'World {world[:12]}. Baseline: {_escape(comparison.baseline)}.', '']
  for metric in dict.fromkeys(row.metric for row in comparison.rows):
    rows = [cells(row) for row in comparison.rows if row.metric == metric]
    lines += [*table(headings(metric), rows), '']
  lines += [*table(run_headings(comparison), run_cells(comparison)), '']
  lines += [f'- {_escape(note)}' for note in notes(comparison)]
  lines += [f'- Warning: {_escape(warning)}.' for warning in comparison.warnings]
  return '\n'.join(lines) + '\n'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Writes the lines of a table in Markdown."""
  return [_line(headings), _line(['---'] * len(headings)), *map(_line, rows)]


def _line(texts: Iterable[str]) -> str:
  return '| ' + ' | '.join(map(_escape, texts)) + ' |'


def _escape(text: str) -> str:
  return ''.join('\\' + c if c in '\\|*_`<' else c for c in text)


def show(comparison: Comparison, console: rich.console.Console) -> None:
  """Prints the same on a terminal; a narrow one lacks some columns."""
  console.print(title(comparison), soft_wrap=True)
  for metric in dict.fromkeys(row.metric for row in comparison.rows):
    lines = [cells(row) for row in comparison.rows if row.metric == metric]
    columns = [_Column(*column) for column in zip(headings(metric), zip(*lines))]
    kept = _that_fit(columns, console.width)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in kept:
      table.add_column(column.heading, overflow='fold', no_wrap=not column.breaks)
    for line in zip(*(column.texts for column in kept)):
      table.add_row(*line)
    console.print(table)
    if len(kept) < len(columns):
      dropped = ', '.join(_DISPENSABLE[: len(columns) - len(kept)])
      console.print(f'No room here, but in comparison.md (--output): {dropped}.')
  runs_table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  for heading in run_headings(comparison):
    runs_table.add_column(heading, overflow='fold')
  for line in run_cells(comparison):
    runs_table.add_row(*line)
  console.print(runs_table)
  for line in (*notes(comparison), *(f'warning: {w}' for w in comparison.warnings)):
    console.print(line, soft_wrap=True)


class _Column(NamedTuple):
  heading: str
  texts: tuple[str, ...]

  @property
  def breaks(self) -> bool:
    """Tells whether its texts may go over several lines."""
    return self.heading not in _UNBROKEN

  @property
  def width(self) -> int:
    """Counts the characters that it needs."""
    texts = (self.heading, *self.texts)
    if self.breaks:
      return max(len(word) for text in texts for word in text.split())
    return max(map(len, texts))


def _that_fit(columns: Sequence[_Column], width: int) -> Sequence[_Column]:
  """Leaves out dispensable columns until the rest fits."""
  for name in _DISPENSABLE:
    if sum(column.width + _PADDING for column in columns) + _PADDING <= width:
      break
    columns = [column for column in columns if column.heading != name]
  return columns


def summary_csv(comparison: Comparison) -> str:
  """Writes every number of the table as CSV, in fractions."""
  records = []
  for row in comparison.rows:
    record = {
      'metric': row.metric,
      'method': row.method,
      'step': comparison.step,
      'tasks': len(comparison.tasks),
      'seeds': ' '.join(map(str, row.seeds)),
      **_columns('mean', row.final),
      **_columns('area', row.area),
      'baseline': comparison.baseline,
    }
    records.append(record | (_paired_columns(row.paired) if row.paired else {}))
  return _csv(records)


def _paired_columns(pair: Paired) -> dict[str, Any]:
  chance, low, high = pair.improvement
  return {
    'paired_seeds': ' '.join(map(str, pair.seeds)),
    **_columns('difference', pair.difference),
    **_columns('area_difference', pair.area),
    'p_seeds': pair.p_seeds,
    'win': chance,
    'win_low': low,
    'win_high': high,
    'detectable': pair.detectable,
    **_columns('corrected', pair.corrected),
    'verdict': pair.verdict,
  }


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
  ends = {f'{name}_low': estimate.low, f'{name}_high': estimate.high}
  return {name: estimate.mean, **ends}


def _csv(records: Sequence[dict[str, Any]]) -> str:
  """Writes CSV with the columns of the longest record, which has all."""
  known = [
    {k: v for k, v in record.items() if not (isinstance(v, float) and math.isnan(v))}
    for record in records
  ]
  return results.table(known, max(records, key=len))


def write(comparison: Comparison, directory: pathlib.Path) -> list[str]:
  """Writes all files; returns their names, or why one was not drawn."""
  directory.mkdir(parents=True, exist_ok=True)
  texts = {
    'comparison.md': markdown(comparison),
    'comparison.csv': summary_csv(comparison),
    **results.write(comparison.methods, comparison.steps),
  }
  for name, text in texts.items():
    files.write_atomic(directory / name, text.encode())
  try:
    drawn = plot.learning_curves(comparison)
  except plot.PlotError as error:
    return [*texts, str(error)]
  for name, data in drawn.items():
    files.write_atomic(directory / name, data)
  return [*texts, *drawn]
