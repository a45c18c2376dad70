"""Shows evaluation reports to people: one line, or a table."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.table

from sdar_jax.evaluation.panels import composed

# What columns of one table share.
_SETTINGS = (
  *('panel_digest', 'world_digest', 'with_skills', 'attempts', 'seed', 'temperature'),
  *('top_p', 'top_k', 'max_prompt_tokens', 'max_response_tokens'),
)


def kind(report: Mapping[str, Any]) -> tuple[Any, ...]:
  """Lists what reports share that may stand under one heading."""
  return tuple(report.get(key) for key in _SETTINGS)


def line(report: Mapping[str, Any]) -> str:
  """Formats a report as one line: success, panel, what was lost."""
  lost = f'; {report["faults"]} episodes lost to faults' if report['faults'] else ''
  rate, n = _success(report)
  return f'success {rate} n={n or 0}, {report["panel"]}{lost}'


def table(reports: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """Makes a table of success by task type, two columns per report.

  Every success has its 95 % interval and n. Fits 80 columns with two reports.

  Args:
    reports: heading -> report as `evaluate.evaluate` makes it.

  Raises:
    ValueError: the reports are not of one panel and the same settings.
  """
  columns = list(reports.values())
  if len({kind(report) for report in columns}) > 1:
    raise ValueError(f'{", ".join(reports)}: of other panels or settings')
  out = rich.table.Table(
    title=f'{columns[0]["panel"]}  {columns[0]["panel_digest"][:12]}',
    caption=_caption(columns[0]),
    box=rich.box.SIMPLE_HEAD,
    padding=0,
    show_edge=False,
  )
  out.add_column('tasks', overflow='fold')
  for heading in reports:
    out.add_column(heading, justify='right', no_wrap=True)
    out.add_column('n', justify='right', no_wrap=True)
  # A type of which nothing was played has its row, too.
  types = sorted(kind for kind, count in columns[0]['composition'].items() if count)
  _add(out, 'all', map(_success, columns))
  for name in types:
    _add(out, name, (_success(report['by_type'].get(name)) for report in columns))
  out.add_section()
  if all('mean_score' in report for report in columns):
    _add_number(out, 'mean score', '{:.3f}', 'mean_score', columns)
  _add_number(out, 'mean turns', '{:.1f}', 'mean_turns', columns)
  _add_number(out, 'valid actions', '{:.1%}', 'valid_action_rate', columns)
  _add_number(out, 'lost to faults', '{}', 'faults', columns)
  return out


def _caption(report: Mapping[str, Any]) -> str:
  skills = 'with skills' if report['with_skills'] else 'without skills'
  return (
    f'{composed(report["composition"])}\n{report["attempts"]} x each, temperature'
    f' {report["temperature"]}, top_p {report["top_p"]}, top_k {report["top_k"]},'
    f' {skills}; 95 % intervals for new tasks drawn like these, treated as independent'
  )


def _success(report: Mapping[str, Any] | None) -> tuple[str, str]:
  """Formats a rate with its interval, and n; '-' and '' without episodes."""
  if report is None or not report['n']:
    return '-', ''
  low, high = (100 * end for end in report['interval'])
  rate = f'{report["success_rate"]:.1%} [{low:.1f}, {high:.1f}]'
  return rate, str(report['n'])


def _add_number(
  table: rich.table.Table,
  label: str,
  form: str,
  key: str,
  columns: Sequence[Mapping[str, Any]],
) -> None:
  values = [report[key] for report in columns]
  cells = ('-' if value is None else form.format(value) for value in values)
  _add(table, label, ((cell, '') for cell in cells))


def _add(table: rich.table.Table, label: str, cells: Iterable[tuple[str, str]]) -> None:
  table.add_row(label, *itertools.chain(*cells))
