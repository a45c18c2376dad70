"""Draws how runs went; needs matplotlib (extra `plot`). No JAX."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdar_jax.evaluation import display, plot
from sdar_jax.evaluation.comparison import Comparison
from sdar_jax.look import course as course_lib
from sdar_jax.look.course import Course
from sdar_jax.look.folder import LookError

_COLOURS = ('#0f8b8d', '#d9622b', '#7a5cc9', '#b8860b', '#3a6ea5', '#a23b72', '#6b705c')
_DPI = 150
_SIZE = (6.4, 3.6)  # Inches.
_PHASES = ('rollout', 'batch', 'score', 'update', 'eval')
_INKS = {'light': '#1d1c1a', 'dark': '#ebe8e2'}
_MOST_RUNS = 4  # Of which a chart has a panel each.


class Chart(NamedTuple):
  """Describes a chart: title, what it tells, and how it is drawn."""

  title: str
  caption: str
  draw: Callable[[Any], None]  # On a figure.


def charts(courses: Sequence[Course], compared: Comparison | None) -> dict[str, Chart]:
  """Lists the charts that these runs have numbers for, by file name."""
  found: dict[str, Chart] = {}
  if compared is not None:
    text = (
      f'Success on {compared.evaluation.panel}, %; mean over seeds with its 95 % band,'
      ' of a single seed for new tasks.'
    )
    found['success'] = Chart('Success', text, lambda f: _success(f, compared, courses))
  last = [course.reports[-1] for course in courses if course.reports]
  alike = len({display.kind(report) for report in last}) == 1
  if alike and any(report.get('by_type') for report in last):
    where = f'the last evaluation on {last[0].get("panel")}'
    text = f'Success at {where} by type of task, %, with 95 % intervals.'
    found['types'] = Chart('By type of task', text, lambda f: _types(f, courses))
  for name, title, metric, caption in (
    ('training', 'Success in training', 'rollout/success_rate', 'Fraction solved'),
    ('turns', 'Turns', 'rollout/turns_mean', 'Length of an episode'),
    ('entropy', 'Entropy', 'train/entropy', 'Of the policy, nats'),
    ('valid', 'Valid actions', 'rollout/valid_action_rate', 'Share of turns'),
    ('actions', 'Repeated actions', 'rollout/repeated_action_rate', 'Share of turns'),
    (
      'repeated',
      'Repeated text',
      'rollout/repeated_text_rate',
      "Share of a response's runs of four tokens",
    ),
    ('open', 'Open gates', 'train/gate_open', 'Share of taught tokens above 0.6'),
    ('gap', 'Gap', 'train/gap', 'Teacher less student, nats'),
  ):
    if any(len(course.curve(metric)[0]) for course in courses):
      text = f'{caption}, by step; mean over runs, the band holds all of them.'
      found[name] = Chart(title, text, _lines(courses, metric))
  for name, title, metric, caption in (
    (
      'gates',
      'Gates over training',
      'train/gate_histogram',
      'Share of taught tokens by gate, darker is more (root scale)',
    ),
    ('by_turn', 'Gap by turn', 'train/gap_by_turn', 'Mean gap of a turn, nats'),
  ):
    shown = [course for course in courses if len(course.table(metric)[0])]
    if shown:
      shown = shown[:_MOST_RUNS]
      found[name] = Chart(title, f'{caption}.', _maps(shown, metric))
  if any(course.timing for course in courses):
    text = 'Seconds of a step by phase, the median of its steps.'
    found['phases'] = Chart('Where the time goes', text, lambda f: _phases(f, courses))
    text = 'Sampled tokens over rollout time; all tokens over scoring and update time.'
    found['speed'] = Chart('Tokens per second', text, lambda f: _speed(f, courses))
  return found


def render(chart: Chart, theme: str) -> dict[str, bytes]:
  """Draws a chart as 'svg' and 'png', the same bytes for the same numbers.

  Args:
    chart: what to draw.
    theme: 'light' or 'dark', of the page around it; the ground stays clear.

  Raises:
    LookError: matplotlib is missing.
  """
  try:
    import matplotlib
    from matplotlib.figure import Figure
  except ImportError as error:
    message = "no chart: it needs matplotlib: pip install 'sdar-jax[plot]'"
    raise LookError(message) from error
  with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_style(theme)}):
    figure = Figure(figsize=_SIZE, layout='constrained')
    chart.draw(figure)
    out = {}
    for kind, metadata in (('svg', {'Date': None, 'Creator': None}), ('png', {})):
      stream = io.BytesIO()
      more = {'metadata': metadata or {'Software': None}, 'dpi': _DPI}
      figure.savefig(stream, format=kind, transparent=kind == 'svg', **more)
      out[kind] = stream.getvalue()
  return out


def _style(theme: str) -> dict[str, Any]:
  import cycler

  ink = _INKS[theme]
  names = ('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color')
  return {
    **dict.fromkeys(names, ink),
    'axes.edgecolor': f'{ink}55',
    'grid.color': f'{ink}22',
    'figure.facecolor': 'white' if theme == 'light' else '#1c1c1a',
    'axes.facecolor': 'none',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.prop_cycle': cycler.cycler(color=_COLOURS),
    'font.size': 9,
    'legend.frameon': False,
    'svg.hashsalt': 'sdar',
    'text.parse_math': False,
  }


def _whole_steps(axes: Any) -> None:
  axes.set_xlabel('step')
  axes.xaxis.get_major_locator().set_params(integer=True)


def _colours(courses: Sequence[Course]) -> dict[str, str]:
  """Gives each method a colour, in all charts the same."""
  return dict(zip(course_lib.by_method(courses), itertools.cycle(_COLOURS)))


def _success(figure: Any, compared: Comparison, courses: Sequence[Course]) -> None:
  axes, colours = figure.add_subplot(), _colours(courses)
  rows = [row for row in compared.rows if row.metric == 'success']
  for row in (plot.banded(row, compared) for row in rows):
    mean, low, high = (
      [100 * getattr(estimate, name) for estimate in row.curve]
      for name in ('mean', 'low', 'high')
    )
    seeds = f'{len(row.seeds)} seed{"s" if len(row.seeds) > 1 else ""}'
    label = f'{row.method} ({seeds})'
    colour = colours.get(compared.methods[row.method][0].method)
    style = {'marker': 'o', 'markersize': 3, 'label': label, 'color': colour}
    (line,) = axes.plot(compared.steps, mean, **style)
    axes.fill_between(
      compared.steps, low, high, color=line.get_color(), alpha=0.18, lw=0
    )
  axes.set_ylabel('%')
  axes.legend()
  _whole_steps(axes)


def _lines(courses: Sequence[Course], metric: str) -> Callable[[Any], None]:
  def draw(figure: Any) -> None:
    axes, colours = figure.add_subplot(), _colours(courses)
    for method, runs in course_lib.by_method(courses).items():
      runs = [run for run in runs if len(run.curve(metric)[0])]
      steps, mean, low, high = course_lib.band(runs, metric)
      if len(steps):
        colour = colours[method]
        axes.plot(steps, mean, label=f'{method} ({len(runs)})', color=colour)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
    axes.legend()
    _whole_steps(axes)

  return draw


def _maps(courses: Sequence[Course], metric: str) -> Callable[[Any], None]:
  """A panel for each run: steps to the right, bins or turns upwards."""

  def draw(figure: Any) -> None:
    gates = metric.endswith('histogram')
    panels = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
    tables = [course.table(metric) for course in courses]
    most = max((np.nanmax(np.abs(t), initial=0.0) for _, t in tables), default=0) or 1
    for axes, course, (steps, table) in zip(panels, courses, tables):
      high = 1.0 if gates else table.shape[1] + 0.5
      extent = (steps[0] - 0.5, steps[-1] + 0.5, 0.0 if gates else 0.5, high)
      shown = np.sqrt(table.T) if gates else table.T
      span = {'vmin': 0, 'vmax': most**0.5} if gates else {'vmin': -most, 'vmax': most}
      image = axes.imshow(
        shown,
        aspect='auto',
        origin='lower',
        extent=extent,
        interpolation='nearest',
        cmap='BuGn' if gates else 'PuOr_r',
        **span,
      )
      axes.grid(False)
      axes.set_title(course.name, fontsize=8)
      _whole_steps(axes)
    panels[0].set_ylabel('gate' if gates else 'turn')
    if not gates:
      figure.colorbar(image, ax=list(panels), label='nats', shrink=0.8)

  return draw


def _types(figure: Any, courses: Sequence[Course]) -> None:
  axes = figure.add_subplot()
  shown = [course for course in courses if course.reports][: 2 * _MOST_RUNS]
  names = sorted({n for c in shown for n in _by_type(c)})
  thick = 0.8 / len(shown)
  error = {'lw': 0.8, 'ecolor': axes.xaxis.label.get_color()}
  for place, course in enumerate(shown):
    rates = [_by_type(course).get(name) for name in names]
    at = np.arange(len(names)) + thick * (place - (len(shown) - 1) / 2)
    mean = [np.nan if r is None else 100 * r[0] for r in rates]
    ends = [(np.nan, np.nan) if r is None else (100 * r[1], 100 * r[2]) for r in rates]
    low, high = np.asarray(ends).T
    errors = np.maximum([np.subtract(mean, low), np.subtract(high, mean)], 0)
    label = f'{course.name}, step {course.reports[-1]["step"]}'
    axes.barh(at, mean, thick * 0.9, xerr=errors, label=label, error_kw=error)
  axes.set_yticks(range(len(names)), [name.replace('_', ' ') for name in names])
  axes.invert_yaxis()
  axes.set_xlim(0, 100)
  axes.set_xlabel('%')
  figure.legend(fontsize=7, loc='outside lower center', ncols=2)


def _by_type(course: Course) -> Mapping[str, tuple[float, float, float]]:
  types = course.reports[-1].get('by_type', {})
  return {
    name: (said['success_rate'], *said['interval'])
    for name, said in types.items()
    if said.get('success_rate') is not None
  }


def _phases(figure: Any, courses: Sequence[Course]) -> None:
  axes = figure.add_subplot()
  shown = [course for course in courses if course.timing][: 2 * _MOST_RUNS]
  left = np.zeros(len(shown))
  for phase in _PHASES:
    curves = (course.curve(f'perf/{phase}_seconds')[1] for course in shown)
    seconds = np.asarray([np.median(v) if len(v) else 0.0 for v in curves])
    axes.barh([c.name for c in shown], seconds, left=left, label=phase, height=0.6)
    left += seconds
  axes.invert_yaxis()
  axes.set_xlabel('s')
  figure.legend(ncols=len(_PHASES), fontsize=7, loc='outside lower center')


def _speed(figure: Any, courses: Sequence[Course]) -> None:
  panels = figure.subplots(1, 2)
  for axes, name in zip(panels, ('decode', 'train')):
    for course in courses:
      steps, values = course.curve(f'perf/{name}_tokens_per_second')
      axes.plot(steps, values, label=course.name)
    axes.set_ylim(bottom=0)
    axes.set_title(name, fontsize=9)
    _whole_steps(axes)
  panels[0].legend(fontsize=7)
