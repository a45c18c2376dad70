"""Compares runs: `sdar-compare RUN... [--baseline=NAME]`. Host, no JAX.

A RUN is a work directory, or a results.csv that an earlier comparison wrote (the file,
or the folder that holds it). Runs are grouped by method over seeds; the tables go to
the terminal and, with --output, to a directory:

  comparison.md      the tables, their notes and warnings
  comparison.csv     every number of the second, fractions in [0, 1]
  results.csv/.json  every episode of all evaluations compared, and of what they are
  curves.png/.svg    success over steps with 95 % bands; needs matplotlib

Exit codes: 0 done; 2 the runs cannot be compared, or wrong input; 74 the disk refuses a
file.
"""

import argparse
from collections.abc import Sequence

from sdar_jax import files
from sdar_jax.process import flags, terminal


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = flags.Parser(
    'sdar-compare',
    'Compares runs by method over seeds, with intervals (also: python -m'
    ' sdar_jax.compare).',
    'exit codes: 0 done; 2 the runs cannot be compared, or wrong input; 74 the disk'
    ' refuses a file.',
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='directory or results.csv')
  parser.add_argument(
    '--baseline', metavar='NAME', help='method to compare others with'
  )
  parser.add_argument('--step', type=int, help='compare here, not at the last step')
  parser.add_argument(
    '--output', metavar='DIR', help='directory for tables, episodes and figure'
  )
  return parser.parse_all(argv)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Compares the runs that a command line names; returns the exit code."""
  options, output = _arguments(argv), None
  if options.output is not None:
    output = files.local_path(options.output, '--output')
    files.check_directory(output, '--output')
  # Slow to import: --help does without.
  import rich.console

  from sdar_jax.evaluation import comparison, presentation, results

  found = [run for path in options.runs for run in results.load(path)]
  compared = comparison.compare(found, options.baseline, options.step)
  console = rich.console.Console(markup=False, highlight=False)
  presentation.show(compared, console)  # Before it is written, which may fail.
  if output is None:
    return 0
  try:
    written = presentation.write(compared, output)
  except OSError as error:
    code = getattr(error, 'exit_code', terminal.WRONG_INPUT)
    return terminal.fail(error, code, 'the table is above')
  console.print(f'in {output}: {", ".join(written)}', soft_wrap=True)
  return 0


if __name__ == '__main__':
  main()
