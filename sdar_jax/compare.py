"""Compares runs: `python -m sdar_jax.compare RUN... [--baseline NAME]`. No JAX.

A RUN is a work directory. Runs are grouped by method over seeds; the table goes to the
terminal and, with the raw results and the learning curves, to the output directory:

  comparison.md    the table, its notes and warnings
  comparison.csv   every number of it, fractions in [0, 1]
  results.csv      every episode of the evaluations compared
  curves.png/.svg  success over steps with 95 % bands; needs matplotlib

Exit codes: 0 done, 2 the runs cannot be compared, in one line on stderr.
"""

import argparse
import csv
import io
import math
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import rich.box
import rich.console
import rich.table

from sdar_jax import comparison as comparison_lib
from sdar_jax import files, flags, plot, runs, terminal
from sdar_jax.comparison import Comparison, Paired, Row
from sdar_jax.statistics import Estimate

_HEADINGS = (
  'method (seeds)',
  'mean',
  'area',
  'difference',
  'p',
  'P(win)',
  'detects',
  'verdict',
)
_UNBROKEN = ('p', 'detects', 'verdict')
_PADDING = 3  # Characters that a column of the terminal's table needs besides.
_DISPENSABLE = ('P(win)', 'area', 'p')  # Where a terminal is narrow, in this order.


def _headings(metric: str) -> list[str]:
  return [metric if heading == 'mean' else heading for heading in _HEADINGS]


def cells(row: Row) -> list[str]:
  """A row of the table as text, in the order of its headings."""
  name = f'{row.method} ({len(row.seeds)})'
  out = [name, _percent(row.final), _percent(row.area)]
  if row.paired is None:
    return out + [''] * (len(_HEADINGS) - len(out))
  pair = row.paired
  chance, low, high = pair.improvement
  return [
    *out,
    _percent(pair.difference, sign='+'),
    f'{pair.test.p:.2g}{"" if pair.test_over == "seeds" else "*"}',
    f'{chance:.2f} [{low:.2f}, {high:.2f}]',
    '-' if math.isnan(pair.detectable) else f'{100 * pair.detectable:.1f}',
    pair.verdict,
  ]


def _percent(estimate: Estimate, sign: str = '') -> str:
  mean = f'{100 * estimate.mean:{sign}.1f}'
  if math.isnan(estimate.low):
    return mean
  return f'{mean} [{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]'


def title(comparison: Comparison) -> str:
  """What was compared, in one line."""
  e = comparison.evaluation
  return (
    f'step {comparison.step}, panel {e.panel} ({e.panel_digest[:12]}),'
    f' {len(comparison.tasks)} tasks x {e.attempts}, temperature {e.temperature}'
  )


def notes(comparison: Comparison) -> list[str]:
  """How to read the table, one line each."""
  first, last = comparison.steps[0], comparison.steps[-1]
  out = [
    f'Mean: in %, at step {comparison.step} of every run: none is taken at its best.'
    f' Area: under the learning curve from step {first} to {last}, as its mean height.',
    'Brackets: 95 % intervals for new seeds and new tasks of this kind (two-way random'
    ' effects, few-seed degrees of freedom); with one seed there is none.',
  ]
  others = max(
    (row.paired.comparisons for row in comparison.rows if row.paired), default=0
  )
  if not others:
    return out
  out += [
    f'Difference: method minus {comparison.baseline} on the same seeds and tasks, in'
    ' percentage points. The verdict asks that its interval excludes 0 and p < 0.05.',
    *_test_notes(comparison),
    f'P(win): chance that a new seed beats a new seed of {comparison.baseline} on'
    ' this panel, ties half (Mann-Whitney).',
    'Detects: the true difference, in points, that these seeds and tasks find with'
    ' probability 0.8 at the 5 % level, given the variances seen here.',
  ]
  if others > 1:
    out.append(
      f'{others} comparisons: intervals, p and what is detected are those of each by'
      ' itself. A verdict that would not hold at 5 % divided by their number'
      ' (Bonferroni) is called uncorrected.'
    )
  return out


def _test_notes(comparison: Comparison) -> list[str]:
  out = []
  pairs = [row.paired for row in comparison.rows if row.paired is not None]
  for over, count in sorted({(p.test_over, len(p.seeds)) for p in pairs}):
    least = f'{2 / 2**count:.2g}'
    if over == 'seeds':
      out.append(
        f'p: two-sided, signs of whole seeds flipped; {count} seeds give no p below'
        f' {least}.'
      )
    else:
      out.append(
        f'p*: two-sided, signs flipped within each (seed, task) pair of {count} seeds:'
        ' about these trained runs, not about new seeds. Flipping whole seeds could'
        f' give no p below {least}.'
      )
  return out


def markdown(comparison: Comparison) -> str:
  """The table, notes and warnings."""
  lines = ['# Comparison', '', f'{_escape(title(comparison))}.', '']
  world = comparison.methods[comparison.baseline][0].world_digest
  lines += [f'World {world[:12]}. Baseline: {_escape(comparison.baseline)}.', '']
  for metric in dict.fromkeys(row.metric for row in comparison.rows):
    lines += [_line(_headings(metric)), _line(['---'] * len(_HEADINGS))]
    lines += [_line(cells(r)) for r in comparison.rows if r.metric == metric]
    lines.append('')
  lines += [f'- {_escape(note)}' for note in notes(comparison)]
  lines += [f'- Warning: {_escape(warning)}.' for warning in comparison.warnings]
  return '\n'.join(lines) + '\n'


def _line(texts: Iterable[str]) -> str:
  return '| ' + ' | '.join(map(_escape, texts)) + ' |'


def _escape(text: str) -> str:
  return ''.join('\\' + c if c in '\\|*_`<' else c for c in text)


def show(comparison: Comparison, console: rich.console.Console) -> None:
  """Prints the same to a terminal; a narrow one has no room for some columns."""
  console.print(title(comparison), soft_wrap=True)
  for metric in dict.fromkeys(row.metric for row in comparison.rows):
    lines = [cells(row) for row in comparison.rows if row.metric == metric]
    columns = [_Column(*column) for column in zip(_headings(metric), zip(*lines))]
    kept = _that_fit(columns, console.width)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in kept:
      table.add_column(column.heading, overflow='fold', no_wrap=not column.breaks)
    for line in zip(*(column.texts for column in kept)):
      table.add_row(*line)
    console.print(table)
    if len(kept) < len(columns):
      dropped = ', '.join(_DISPENSABLE[: len(columns) - len(kept)])
      console.print(f'No room here, but in the files: {dropped}.')
  for line in (*notes(comparison), *(f'warning: {w}' for w in comparison.warnings)):
    console.print(line, soft_wrap=True)


class _Column(NamedTuple):
  heading: str
  texts: tuple[str, ...]

  @property
  def breaks(self) -> bool:
    """Whether its texts may go over several lines."""
    return self.heading not in _UNBROKEN

  @property
  def width(self) -> int:
    """Characters that it needs."""
    texts = (self.heading, *self.texts)
    if self.breaks:
      return max(len(word) for text in texts for word in text.split())
    return max(map(len, texts))


def _that_fit(columns: Sequence[_Column], width: int) -> Sequence[_Column]:
  """The columns without as many of the dispensable ones as are too many."""
  for name in _DISPENSABLE:
    if sum(column.width + _PADDING for column in columns) + _PADDING <= width:
      break
    columns = [column for column in columns if column.heading != name]
  return columns


def summary_csv(comparison: Comparison) -> str:
  """Every number of the table; fractions, and an empty field for what there is not."""
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
    'p': pair.test.p,
    'p_over': pair.test_over,
    'p_smallest': pair.test.smallest,
    'win': chance,
    'win_low': low,
    'win_high': high,
    'detectable': pair.detectable,
    'seeds_needed': pair.seeds_needed,
    **_columns('corrected', pair.corrected),
    'verdict': pair.verdict,
  }


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
  ends = {f'{name}_low': estimate.low, f'{name}_high': estimate.high}
  return {name: estimate.mean, **ends}


def results_csv(comparison: Comparison) -> str:
  """Every episode of the evaluations compared."""
  records = []
  for method, members in comparison.methods.items():
    for run in members:
      for result in run.evaluations[comparison.step].results:
        record = {'method': method, 'seed': run.seed, 'step': comparison.step}
        record |= {'task_id': result.task_id, 'attempt': result.attempt}
        record |= {'type': result.task_type, 'success': int(result.success)}
        if result.score is not None:
          record['score'] = result.score
        record |= {'outcome': result.outcome.value, 'turns': result.turns}
        records.append(record)
  return _csv(records)


def _csv(records: Sequence[dict[str, Any]]) -> str:
  """CSV whose columns are those of the record with most, which hold all others'."""
  stream = io.StringIO()
  writer = csv.DictWriter(stream, max(records, key=len), lineterminator='\n')
  writer.writeheader()
  for record in records:
    nan = {k for k, v in record.items() if isinstance(v, float) and math.isnan(v)}
    writer.writerow({k: '' if k in nan else v for k, v in record.items()})
  return stream.getvalue()


def write(comparison: Comparison, directory: pathlib.Path) -> list[str]:
  """Writes all files; returns their names, or a line for what could not be drawn."""
  directory.mkdir(parents=True, exist_ok=True)
  texts = {
    'comparison.md': markdown(comparison),
    'comparison.csv': summary_csv(comparison),
    'results.csv': results_csv(comparison),
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


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = flags.Parser(prog='python -m sdar_jax.compare')
  parser.description = 'Compares runs by method over seeds, with intervals.'
  parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory')
  parser.add_argument(
    '--baseline', metavar='NAME', help='method to compare others with'
  )
  parser.add_argument('--step', type=int, help='compare here, not at the last step')
  parser.add_argument(
    '--output',
    default='runs/comparison',
    help='directory for tables and figure (default: %(default)s)',
  )
  return parser.parse_all(argv)


def main(argv: Sequence[str]) -> int:
  """Entry point; returns the exit code."""
  try:
    arguments = _arguments(argv)
    output = files.local_path(arguments.output, '--output')
    files.check_directory(output, '--output')
    read = [runs.read(files.local_path(path, 'RUN')) for path in arguments.runs]
    comparison = comparison_lib.compare(read, arguments.baseline, arguments.step)
  except (ValueError, OSError) as error:
    print(f'error: {files.one_line(error, 1000)}', file=sys.stderr)
    return 2
  console = rich.console.Console(markup=False, highlight=False)
  show(comparison, console)  # Before it is written, which may fail.
  try:
    written = write(comparison, output)
  except OSError as error:
    what = files.one_line(error, 1000)
    print(f'error: --output={output}: {what}; the table is above', file=sys.stderr)
    return 2
  console.print(f'in {output}: {", ".join(written)}', soft_wrap=True)
  return 0


if __name__ == '__main__':
  terminal.run(main)
