"""Reports on runs: `sdar report RUN... --out=DIR`. Host, no JAX.

Learning curves with bands over seeds, success by type of task, gates and gaps over
training and by turn, phase times and tokens per second: report.html, which needs
nothing else, and every chart as SVG and PNG. Needs matplotlib (extra `plot`).

Exit codes: 0 done; 2 nothing to report, or wrong input; 74 the disk refuses a file.
"""

import argparse
import base64
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal


def arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Reads a command line."""
  parser = flags.Parser(
    'sdar report',
    'Draws how runs went: learning curves, gates, gaps, times.',
    'exit codes: 0 done; 2 nothing to report, or wrong input; 74 the disk refuses a'
    ' file.',
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='directory of a run')
  parser.add_argument('--out', metavar='DIR', help='of page and charts; needed')
  options = parser.parse_all(argv)
  if options.out is None:
    raise flags.UsageError('--out is missing: name a directory for page and charts')
  return options


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Writes the report that a command line asks for; returns the code."""
  options = arguments(argv)
  output = files.local_path(options.out, '--out')
  files.check_directory(output, '--out')
  # Slow to import: --help does without.
  from sdar_jax.look import charts, course

  paths = [files.local_path(name, 'RUN') for name in options.runs]
  courses = [course.read(path) for path in paths]
  compared, reason = _compared(options.runs)
  notes = [note for one in courses for note in one.notes] + [*filter(None, [reason])]
  found = charts.charts(courses, compared)
  drawn = {name: charts.render(chart, 'light') for name, chart in found.items()}
  dark = {name: charts.render(chart, 'dark')['svg'] for name, chart in found.items()}
  sheet = [
    _section(chart.title, chart.caption, drawn[name]['svg'], dark[name])
    for name, chart in found.items()
  ]
  text = _page(courses, sheet, notes)
  written = {f'{n}.{k}': v for n, made in drawn.items() for k, v in made.items()}
  with files.writing(output):
    output.mkdir(parents=True, exist_ok=True)
  for name, data in {**written, 'report.html': text.encode()}.items():
    files.write_atomic(output / name, data)
  for note in notes:
    print(f'note: {note}')
  print(f'{output / "report.html"}: {len(courses)} runs, {len(found)} charts')
  return 0


def _compared(names: Sequence[str]) -> tuple[Any, str]:
  """Compares the runs; None and why where they cannot be."""
  from sdar_jax.evaluation import comparison, results

  try:
    runs = [run for name in names for run in results.load(name)]
    return comparison.compare(runs), ''
  except ValueError as error:
    return None, f'No learning curve: {files.one_line(error)}'


def _page(courses: Sequence[Any], sections: Sequence[str], notes: Sequence[str]) -> str:
  from sdar_jax.look import page

  heads = ('run', 'method', 'seed', 'steps', 'success', 'collapsed at step')
  heads += ('hours', 'tokens/s, sampled')
  rows = [''.join(f'<th>{head}</th>' for head in heads)]
  for course in courses:
    cells = _row(course)
    rows.append(''.join(f'<td>{page.escaped(cell)}</td>' for cell in cells))
  table = ''.join(f'<tr>{row}</tr>' for row in rows)
  note = ''.join(f'<p class="note">{page.escaped(note)}</p>' for note in notes)
  title = ', '.join(dict.fromkeys(course.name for course in courses))
  return page.filled(
    'report',
    title=f'Report: {title}',
    table=f'<table>{table}</table>{note}',
    sections='\n'.join(sections),
  )


def _row(course: Any) -> list[str]:
  """Sums a run up."""
  import numpy as np

  from sdar_jax.look import course as course_lib

  fallen = course_lib.collapse(course)
  success = '\u2013'
  if course.reports and course.reports[-1].get('success_rate') is not None:
    report: Mapping[str, Any] = course.reports[-1]
    low, high = report['interval']
    success = f'{report["success_rate"]:.1%} [{low:.1%}, {high:.1%}]'
    success += f' at step {report["step"]} on {report.get("panel")}'
  seconds = course.curve('perf/step_seconds')[1]
  speed = course.curve('perf/decode_tokens_per_second')[1]
  return [
    course.name,
    course.method,
    '\u2013' if course.seed is None else str(course.seed),
    str(len(course.metrics)),
    success,
    '\u2013' if fallen is None else str(fallen),
    f'{seconds.sum() / 3600:.2f}',
    f'{np.median(speed):,.0f}' if len(speed) else '\u2013',
  ]


def _section(title: str, caption: str, light: bytes, dark: bytes) -> str:
  """A chart of the page, in the reader's theme."""
  from sdar_jax.look.page import escaped

  day, night = (
    f'data:image/svg+xml;base64,{base64.b64encode(svg).decode()}'
    for svg in (light, dark)
  )
  said = escaped(f'{title}. {caption}')
  picture = (
    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{night}">'
    f'<img src="{day}" alt="{said}"></picture>'
  )
  head = f'<h2>{escaped(title)}</h2>'
  return f'<figure>{head}{picture}<figcaption>{escaped(caption)}</figcaption></figure>'


if __name__ == '__main__':
  main()
