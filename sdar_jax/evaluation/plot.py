"""Learning curves with bands; needs matplotlib (extra `plot`). No JAX."""

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

from sdar_jax.evaluation.comparison import ComparedRow, Comparison, success_rate

_SIZE = (7.0, 4.5)  # Inches, of axes that stand alone.
_SMALL = (2.6, 2.1)  # Of one among many.
_COLUMNS = 4  # At most, of those.
_TOGETHER = 3  # Methods whose bands can be told apart on the same axes.
_DPI = 150
_COLORS = ('tab:gray', 'tab:blue')  # Of the baseline and of a method beside it.


class PlotError(RuntimeError):
  """Nothing to draw with, or to draw: one line with the remedy."""


def learning_curves(
  comparison: Comparison, metric: str = 'success'
) -> dict[str, bytes]:
  """Draws the mean over seeds with its 95 % band, a line per method.

  Up to three methods share their axes; of more, each meets the baseline on its own. Of
  a single seed the band is that of its success on new tasks, and the legend says so.

  Args:
    comparison: of runs.
    metric: which rows to draw.

  Returns:
    File name -> content, as PNG and as SVG; the same comparison gives the same bytes
    under the same matplotlib.

  Raises:
    PlotError: matplotlib is missing.
  """
  try:
    import matplotlib
    from matplotlib.figure import Figure
  except ImportError as error:
    message = "no figure: it needs matplotlib: pip install 'sdar-jax[plot]'"
    raise PlotError(message) from error
  # The salt names the SVG's parts, which are random otherwise.
  settings = {'svg.hashsalt': 'sdar', 'text.parse_math': False}
  with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}):
    figure = _figure(Figure, comparison, metric)
    return {
      'curves.png': _save(figure, 'png', {'Software': None}),
      'curves.svg': _save(figure, 'svg', {'Date': None, 'Creator': None}),
    }


def _figure(make: Any, comparison: Comparison, metric: str) -> Any:
  rows = [banded(row, comparison) for row in comparison.rows if row.metric == metric]
  title = f'{metric}, %, on {comparison.evaluation.panel}; 95 % bands'
  if len(rows) <= _TOGETHER:
    figure = make(figsize=_SIZE, layout='constrained')
    axes = figure.add_subplot()
    _draw(axes, comparison.steps, rows)
    axes.set_xlabel('step')
    axes.legend(fontsize=8)
  else:
    baseline, *others = rows
    columns = min(len(others), _COLUMNS)
    lines = math.ceil(len(others) / columns)
    size = (columns * _SMALL[0], lines * _SMALL[1])
    figure = make(figsize=size, layout='constrained')
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(others) :]:
      axes.remove()
    for axes, row in zip(grid.flat, others):
      axes.set_prop_cycle(color=_COLORS)
      _draw(axes, comparison.steps, [baseline, row])
      axes.set_title(_label(row), fontsize=9, color=_COLORS[1])
    figure.supxlabel('step', fontsize=9)
    title += f'; gray: {_label(baseline)}'
  figure.suptitle(title, fontsize=10)
  return figure


def _label(row: ComparedRow) -> str:
  if len(row.seeds) == 1:
    return f'{row.method} (1 seed' + (', new tasks)' if _is_rate(row) else ')')
  return f'{row.method} ({len(row.seeds)} seeds)'


def _is_rate(row: ComparedRow) -> bool:
  return row.metric == 'success'


def banded(row: ComparedRow, comparison: Comparison) -> ComparedRow:
  """Gives the curve of a single seed its interval for new tasks."""
  if len(row.seeds) > 1 or not _is_rate(row):
    return row
  (run,) = comparison.methods[row.method]
  curve = []
  for step, estimate in zip(comparison.steps, row.curve, strict=True):
    _, low, high = success_rate(run.evaluations[step])
    curve.append(estimate._replace(low=low, high=high))
  return dataclasses.replace(row, curve=tuple(curve))


def _draw(axes: Any, steps: Sequence[int], rows: Sequence[ComparedRow]) -> None:
  """Lines and bands."""
  for row in rows:
    means = [100 * estimate.mean for estimate in row.curve]
    (line,) = axes.plot(steps, means, marker='o', markersize=3, label=_label(row))
    low = [100 * estimate.low for estimate in row.curve]
    high = [100 * estimate.high for estimate in row.curve]
    axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, lw=0)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3)


def _save(figure: Any, kind: str, metadata: dict[str, None]) -> bytes:
  stream = io.BytesIO()
  figure.savefig(stream, format=kind, dpi=_DPI, metadata=metadata)
  return stream.getvalue()
