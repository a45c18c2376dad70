"""Learning curves with bands. No JAX; needs matplotlib, an optional extra."""

import io
from typing import Any

from sdar_jax.comparison import Comparison

_SIZE = (7.0, 4.5)  # Inches.
_DPI = 150


class PlotError(RuntimeError):
  """Nothing can be drawn: one line saying what to install."""


def learning_curves(
  comparison: Comparison, metric: str = 'success'
) -> dict[str, bytes]:
  """The mean over seeds at every step, with its 95 % band, one line per method.

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
    raise PlotError('no figure: it needs `pip install matplotlib`') from error
  # The salt names the SVG's parts, which are random otherwise.
  settings = {'svg.hashsalt': 'sdar', 'text.parse_math': False}
  with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}):
    figure = Figure(figsize=_SIZE, layout='constrained')
    _draw(figure.add_subplot(), comparison, metric)
    return {
      'curves.png': _save(figure, 'png', {'Software': None}),
      'curves.svg': _save(figure, 'svg', {'Date': None, 'Creator': None}),
    }


def _draw(axes: Any, comparison: Comparison, metric: str) -> None:
  steps = comparison.steps
  for row in comparison.rows:
    if row.metric == metric:
      label = f'{row.method} ({len(row.seeds)} seeds)'
      means = [100 * estimate.mean for estimate in row.curve]
      (line,) = axes.plot(steps, means, marker='o', markersize=3, label=label)
      low = [100 * estimate.low for estimate in row.curve]
      high = [100 * estimate.high for estimate in row.curve]
      axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, lw=0)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_xlabel('step')
  axes.set_ylabel(f'{metric}, %')
  axes.set_title(f'{comparison.evaluation.panel}, 95 % bands', fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)


def _save(figure: Any, kind: str, metadata: dict[str, None]) -> bytes:
  stream = io.BytesIO()
  figure.savefig(stream, format=kind, dpi=_DPI, metadata=metadata)
  return stream.getvalue()
