"""A study: methods x seeds of one config file, run to the end and compared.

  sdar-study --study=small [--output=runs/studies/small] [--jobs=2]
  sdar-study --config=FILE.py:ARGUMENT --methods=grpo,sdar --seeds=0,1,2 \\
    [--config.KEY=VALUE ...]

`--study` names a file of experiments/studies or a path; its `get_config()` says what is
compared. `--config` does without such a file. Every cell is a training run of its own
process and directory. The same command goes on where it stopped: what is done is
skipped, what was begun resumes from its checkpoint, a failed cell is tried again and
does not keep the others. It ends in `sdar-compare` on all finished runs. `study.json`
records every cell, over all calls. A run's last bits depend on how many cores it has,
so a study keeps its --jobs. On one accelerator use --jobs=1: a run takes most of its
memory.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal
from sdar_jax.process.flags import OVERRIDE, UsageError

_EXIT_CODES = """\
exit codes: 0 done, or stopped on request; 1 a cell failed, is over its budget or is
blocked, or the runs cannot be compared; 2 wrong input; 74 the disk refuses a file."""


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = flags.Parser(
    'sdar-study',
    'Runs methods x seeds of one config file and compares them (also: python -m'
    ' experiments.study).',
    _EXIT_CODES,
  )
  parser.add_argument(
    '--study', help='of experiments/studies, or a path ending in .py (default: small)'
  )
  parser.add_argument(
    '--config',
    metavar='FILE.py[:ARGUMENT]',
    help='instead of --study: an experiment; keys of it as --config.KEY=VALUE',
  )
  parser.add_argument(
    '--methods', metavar='A,B', help='of --config; the first is the baseline'
  )
  parser.add_argument('--seeds', metavar='N,M', help='of --config, e.g. 0,1,2')
  parser.add_argument(
    '--output', metavar='DIR', help='directory (default: runs/studies/NAME)'
  )
  parser.add_argument(
    '--jobs', type=int, default=2, help='cells side by side (default: %(default)s)'
  )
  options, rest = parser.parse(argv)
  _check(options, rest)
  return options, rest


def _check(options: argparse.Namespace, rest: Sequence[str]) -> None:
  """Raises UsageError where words say too little or are of no use."""
  of_config = {name: getattr(options, name) for name in ('methods', 'seeds')}
  stray = [word for word in rest if not OVERRIDE.match(word)]
  if stray:
    raise UsageError(f'{" ".join(stray)}: no such flag; see --help')
  if options.config is None:
    given = [f'--{name}' for name, value in of_config.items() if value] + list(rest)
    if given:
      raise UsageError(f'{given[0]}: needs --config=FILE.py')
  elif options.study is not None:
    raise UsageError('--study and --config: give one of them')
  elif None in of_config.values():
    raise UsageError('--config: needs --methods=A,B and --seeds=0,1,2')
  if options.jobs < 1:
    raise UsageError(f'--jobs={options.jobs}: must be at least 1')


def _of_words(options: argparse.Namespace, words: Sequence[str]) -> Any:
  """Makes the study of a --config, its methods, seeds and overrides."""
  import ml_collections

  from experiments import sources
  from experiments.studies import small
  from sdar_jax import config as config_lib
  from sdar_jax.cli import config_file

  methods = tuple(options.methods.split(','))
  try:
    seeds = tuple(int(seed) for seed in options.seeds.split(','))
  except ValueError:
    raise UsageError(f'--seeds={options.seeds}: must be whole numbers') from None
  source = sources.find(options.config)
  values = config_lib.flatten(
    config_file.read(source.text(methods[0], seeds[0]), words)
  )
  keys = [OVERRIDE.match(word)[2] for word in words]
  c = small.get_config()
  c.world, c.config = '', options.config
  c.methods, c.seeds, c.baseline = methods, seeds, methods[0]
  c.overrides = ml_collections.ConfigDict(
    {key: values[key] for key in keys}, allow_dotted_keys=True
  )
  c.cell_seconds = 0.0
  return c


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Runs the study that a command line names; returns the exit code."""
  options, words = _parse(argv)
  named = (options.config or options.study or 'small').partition(':')[0]
  name = pathlib.Path(named).stem
  output = files.local_path(options.output or f'runs/studies/{name}', '--output')
  files.check_directory(output, '--output')
  from experiments import cells, runner  # Slow to import: --help does without.

  if options.config is None:
    study = cells.load(options.study or 'small')
  else:
    study = _of_words(options, words)
  return runner.run(study, output, options.jobs)


if __name__ == '__main__':
  main()
