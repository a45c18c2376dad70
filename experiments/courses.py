"""Keeps how runs went in one file: whether they collapsed, or what they cost.

  python -m experiments.courses --output=FILE.csv RUN...   # of directories of runs
  python -m experiments.courses FILE.csv                   # its table, in Markdown
  python -m experiments.courses --costs ...                # likewise, what they cost

The file has a line for each run and step, with what tells a collapse (the rule is that
of docs/studies.md), or with tokens and processor time.
"""

import csv
import math
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from sdar_jax import files
from sdar_jax.evaluation import presentation, results
from sdar_jax.look import course as course_lib
from sdar_jax.process import flags, terminal

# Heading of the table -> metric. All are shares but the entropy, in nats.
METRICS = {
  'success in training': 'rollout/success_rate',
  'entropy': 'train/entropy',
  'valid actions': 'rollout/valid_action_rate',
  'repeated actions': 'rollout/repeated_action_rate',
  'repeated text': 'rollout/repeated_text_rate',
}
COLLAPSE = tuple(METRICS.values())
COSTS = (
  'rollout/rows',
  'rollout/sampled_tokens',
  'rollout/prompt_tokens_mean',
  'perf/cpu_seconds',
  'perf/compile_seconds',
)
_RUN = ('method', 'seed', 'step')
_ENDS = course_lib.COLLAPSE_STEPS  # Which the table averages over: five.


def written(
  courses: Sequence[course_lib.Course], names: Sequence[str] = COLLAPSE
) -> str:
  """Formats runs as CSV; a number that a step lacks is left empty."""
  records = []
  for course in courses:
    times = {line['step']: line for line in course.timing}
    for line in course.metrics:
      known = {**times.get(line['step'], {}), **line}
      run = {'method': course.method, 'seed': course.seed, 'step': line['step']}
      records.append(run | {name: known.get(name) for name in names})
  return results.table(records, (*_RUN, *names))


def read(
  path: pathlib.Path, names: Sequence[str] = COLLAPSE
) -> list[course_lib.Course]:
  """Reads what `written` wrote of the same names.

  Raises:
    files.FileError: one line naming the file and what is wrong with it.
  """
  lines: dict[tuple[str, int], list[dict[str, float]]] = {}
  try:
    text = path.read_text(errors='replace')
  except OSError as error:
    why = error.strerror or files.one_line(error)
    raise files.FileError(f'{path}: {why}') from None
  reader = csv.DictReader(text.splitlines())
  if tuple(reader.fieldnames or ()) != (*_RUN, *names):
    raise files.FileError(f'{path}: its columns must be {", ".join((*_RUN, *names))}')
  for line in reader:
    try:
      if None in (*line, *line.values()):
        raise ValueError('more or fewer cells than columns')
      run = line.pop('method'), int(line.pop('seed'))
      numbers = {name: float(value) for name, value in line.items() if value}
      step = int(numbers.pop('step'))
    except (KeyError, TypeError, ValueError):
      where = f'{path}, line {reader.line_num}'
      raise files.FileError(f'{where}: not a step of a run') from None
    lines.setdefault(run, []).append({**numbers, 'step': step})
  return [
    course_lib.Course(f'{method}-{seed}', method, seed, tuple(s), tuple(s), ())
    for (method, seed), s in lines.items()
  ]


def table(courses: Sequence[course_lib.Course]) -> list[str]:
  """Writes a column for each method: its collapses, and both ends of its course."""
  grouped = course_lib.by_method(courses)
  heads = [''] + [f'{method} ({len(runs)})' for method, runs in grouped.items()]
  rows = [['collapsed at step'], ['success in training, best five steps']]
  for runs in grouped.values():
    fallen = [course_lib.collapse(run) for run in runs]
    rows[0].append(', '.join('never' if step is None else str(step) for step in fallen))
    success = METRICS['success in training']
    rows[1].append(_range([_means(run, success).max() for run in runs], 'success'))
  for title, name in METRICS.items():
    for end, where in (('first', 0), ('last', -1)):
      row = [f'{title}, {end} five steps']
      for runs in grouped.values():
        row.append(_range([_means(run, name)[where] for run in runs], title))
      rows.append(row)
  return presentation.table(heads, rows)


def costs(courses: Sequence[course_lib.Course]) -> list[str]:
  """Writes what a step of each method took, in the mean over steps and runs.

  Processor time is the median over steps that compiled nothing, and its ratio to that
  of the first method.
  """
  rows, first = [], math.nan
  for method, runs in course_lib.by_method(courses).items():
    turns, sampled, prompt = (
      np.concatenate([run.curve(name)[1] for run in runs]) for name in COSTS[:3]
    )
    busy = [seconds for run in runs for seconds in _busy(run)]
    spent = statistics.median(busy) if busy else math.nan
    first = first if rows else spent
    tokens = turns * prompt + sampled  # Every step has all three.
    counts = [f'{values.mean():,.0f}' for values in (turns, sampled, tokens)]
    rows.append([method, *counts, f'{spent:.1f} ({spent / first:.2f})'])
  heads = ['method', 'turns', 'sampled tokens', 'tokens read in a pass']
  return presentation.table([*heads, 'processor seconds (ratio)'], rows)


def _busy(course: course_lib.Course) -> list[float]:
  """Lists the processor seconds of steps that compiled nothing."""
  compiled = dict(zip(*course.curve('perf/compile_seconds')))
  steps = zip(*course.curve('perf/cpu_seconds'))
  return [seconds for step, seconds in steps if compiled.get(step) == 0]


def _means(course: course_lib.Course, name: str) -> np.ndarray:
  """Averages a metric over any five steps that follow each other.

  Returns:
    [S - 4], in order; one NaN where there are fewer than five.
  """
  _, values = course.curve(name)
  if len(values) < _ENDS:
    return np.full(1, np.nan)
  return np.convolve(values, np.ones(_ENDS) / _ENDS, 'valid')


def _range(values: Sequence[float], title: str) -> str:
  """Formats the mean over runs, and the lowest and the highest of them."""
  if np.isnan(values).any():
    return '–'
  scale, unit, digits = (1, '', 3) if title == 'entropy' else (100, ' %', 1)
  mean, low, high = (
    f'{scale * of(values):.{digits}f}' for of in (np.mean, np.min, np.max)
  )
  return f'{mean}{unit} [{low}, {high}]'


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Writes or prints what a command line asks for; returns the exit code."""
  parser = flags.Parser('python -m experiments.courses', __doc__)
  parser.add_argument('paths', nargs='+', metavar='RUN', help='or one FILE.csv')
  parser.add_argument('--output', metavar='FILE.csv', help='to write the steps to')
  parser.add_argument('--costs', action='store_true', help='tokens and time instead')
  options = parser.parse_all(argv)
  names, shown = (COSTS, costs) if options.costs else (COLLAPSE, table)
  paths = [files.local_path(name, 'RUN') for name in options.paths]
  if options.output is not None:
    output = files.local_path(options.output, '--output')
    files.check_file(output, '--output')
    courses = [course_lib.read(path) for path in paths]
    files.write_atomic(output, written(courses, names).encode())
  else:
    courses = [course for path in paths for course in read(path, names)]
  print('\n'.join(shown(courses)))
  return 0


if __name__ == '__main__':
  main()
