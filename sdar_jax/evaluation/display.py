"""Shows evaluation reports to people: one line, or a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from sdar_jax.evaluation.panels import composed

# What columns of one table share.
_SETTINGS = (
  *('panel_digest', 'world_digest', 'with_skills', 'attempts', 'seed', 'temperature'),
  *('top_p', 'top_k', 'max_prompt_tokens', 'max_response_tokens'),
)


def line(report: Mapping[str, Any]) -> str:
  """Formats a report as one line: panel, success, what was lost."""
  lost = f', {report["faults"]} episodes lost to faults' if report['faults'] else ''
  return f'{_panel(report)}: success {_success(report)}{lost}'


def table(reports: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """Makes a table of success by task type, a column per report.

  Every cell has n and the 95 % interval.

  Args:
    reports: heading -> report as `evaluate.evaluate` makes it.

  Raises:
    ValueError: the reports are not of one panel and the same settings.
  """
  columns = list(reports.values())
  settings = [{k: r[k] for k in _SETTINGS} for r in columns]
  if any(other != settings[0] for other in settings):
    raise ValueError(f'{", ".join(reports)}: of other panels or settings')
  out = rich.table.Table(title=_panel(columns[0]), caption=_caption(columns[0]))
  out.add_column('tasks')
  for heading in reports:
    out.add_column(heading, justify='right')
  # A type of which nothing was played has its row, too.
  types = sorted(kind for kind, count in columns[0]['composition'].items() if count)
  out.add_row('all', *map(_success, columns))
  for name in types:
    out.add_row(name, *(_success(report['by_type'].get(name)) for report in columns))
  out.add_section()
  if all('mean_score' in report for report in columns):
    _add(out, 'mean score', '{:.3f}', 'mean_score', columns)
  _add(out, 'mean turns', '{:.1f}', 'mean_turns', columns)
  _add(out, 'valid actions', '{:.1%}', 'valid_action_rate', columns)
  _add(out, 'lost to faults', '{}', 'faults', columns)
  return out


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
