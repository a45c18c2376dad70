"""A study: methods x seeds in one world, run to the end and compared.

  sdar-study --study=small [--output=runs/studies/small] [--jobs=2]

`--study` names a file of experiments/studies or a path; its `get_config()` says what is
compared. Every cell is a training run of its own process and directory. The same
command goes on where it stopped: what is done is skipped, what was begun resumes from
its checkpoint, a failed cell is tried again and does not keep the others. It ends in
`sdar-compare` on all finished runs. `study.json` records every cell, over all calls. A
run's last bits depend on how many cores it has, so a study keeps its --jobs. On one
accelerator --jobs=1: a run takes most of its memory.
"""

import argparse
import pathlib
from collections.abc import Sequence

from sdar_jax import files
from sdar_jax.process import flags, terminal

_EXIT_CODES = """\
exit codes: 0 done, or stopped on request; 1 a cell failed, is over its budget or is
blocked, or the runs cannot be compared; 2 wrong input; 74 the disk refuses a file."""


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = flags.Parser(
    'sdar-study',
    'Runs methods x seeds in one world and compares them (also: python -m'
    ' experiments.study).',
    _EXIT_CODES,
  )
  parser.add_argument(
    '--study', default='small', help='of experiments/studies, or a path ending in .py'
  )
  parser.add_argument(
    '--output', metavar='DIR', help='directory (default: runs/studies/NAME)'
  )
  parser.add_argument(
    '--jobs', type=int, default=2, help='cells side by side (default: %(default)s)'
  )
  return parser.parse_all(argv)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Runs the study that a command line names; returns the exit code."""
  options = _arguments(argv)
  name = pathlib.Path(options.study).stem
  output = files.local_path(options.output or f'runs/studies/{name}', '--output')
  files.check_directory(output, '--output')
  if options.jobs < 1:
    raise ValueError(f'--jobs={options.jobs}: must be at least 1')
  from experiments import cells, runner  # Slow to import: --help does without.

  return runner.run(cells.load(options.study), output, options.jobs)


if __name__ == '__main__':
  main()
