"""Reads the command line of `main` and its config. No JAX.

Nothing on a command line is ignored: words that are no flags, flags that are unknown,
given twice or empty, and flags that a mode does not read are errors of one line.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.cli import tools
from sdar_jax.process import team
from sdar_jax.process.flags import FLAG, Parser, UsageError, similar


@dataclasses.dataclass(frozen=True)
class Mode:
  """A thing that `main` can do.

  Attributes:
    summary: for --help.
    reads: flags besides --config and --mode.
    needs: those of them that must be given.
  """

  summary: str
  reads: tuple[str, ...]
  needs: tuple[str, ...] = ()


MODES = {
  'train': Mode('train, or go on with it', ('workdir', 'hosts'), ('workdir',)),
  'sft': Mode('imitate the expert', ('checkpoint', 'output'), ('output',)),
  'eval': Mode('play the panel of config.eval', ('checkpoint', 'output')),
  'play': Mode('show one episode, turn by turn', ('checkpoint',)),
  'export': Mode(
    'write a Hugging Face directory', ('checkpoint', 'output'), ('output',)
  ),
  'memory': Mode('print what a device has to hold; no weights are loaded', ()),
  'describe': Mode('print every key, its value, bound and meaning', ()),
}
_FLAGS = ('--config', '--workdir', '--mode', '--checkpoint', '--output', '--hosts')
_FLAGS += ('--help',)
_EXIT_CODES = """\
exit codes: 0 done, or training stopped on request; 2 wrong input; 70 training diverged,
had nothing to train on, or no environment or device that works; 74 the disk refuses
what is to be kept; 75 another process of the run died or hung (134: JAX noticed first);
128+N another mode than train was stopped by signal N.
SDAR_TRACEBACK=1 shows where an error came from."""


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line of `main`, read and checked.

  Attributes:
    mode: a key of `MODES`.
    config: checked; an ml_collections.ConfigDict.
    workdir, checkpoint, output: None where it names none.
    hosts: how the processes of the run find each other, for `team.place`; None where
      there is one.
  """

  mode: str
  config: Any
  workdir: pathlib.Path | None
  checkpoint: pathlib.Path | None
  output: pathlib.Path | None
  hosts: str | None


def _parser() -> Parser:
  modes, words = (
    '\n'.join(f'  {name:9} {row.summary}' for name, row in rows.items())
    for rows in (MODES, tools.TOOLS)
  )
  parser = Parser(
    'sdar',
    'Trains, evaluates and exports agents (also: python -m sdar_jax.main).',
    f'modes:\n{modes}\n\ntools, as sdar compare RUN; each has a --help:\n{words}\n\n'
    f'{_EXIT_CODES}',
  )
  parser.add_argument(
    '--config',
    metavar='FILE.py[:ARGUMENT]',
    help='experiment, e.g. experiments/alfworld.py; one that does not lie here is'
    ' looked for in the installation; needed but where --checkpoint is given',
  )
  parser.add_argument(
    '--mode',
    choices=MODES,
    default='train',
    help='default: %(default)s',
    metavar='MODE',
  )
  parser.add_argument('--workdir', metavar='DIR', help='train: directory of the run')
  parser.add_argument(
    '--checkpoint',
    metavar='RUN',
    help='a run whose newest checkpoint is used, and its configuration where no'
    ' --config is given',
  )
  parser.add_argument(
    '--output', metavar='PATH', help='eval: JSON file; export, sft: directory'
  )
  parser.add_argument(
    '--hosts',
    metavar='auto|ADDRESS:PORT,COUNT,INDEX',
    help='train: one process of several; auto asks SLURM, a TPU pod or GKE',
  )
  parser.add_argument_group(
    'config keys',
    '--config.KEY=VALUE, e.g. --config.steps=40; --mode=describe lists them',
  )
  return parser


def parse(argv: Sequence[str]) -> Command:
  """Reads and checks a command line, config file and values.

  Args:
    argv: words after the program's name.

  Raises:
    ValueError: one line saying what is wrong.
  """
  options, rest = _parser().parse(argv)
  for word in rest:
    if FLAG.match(word) and '.' not in word.partition('=')[0]:
      raise UsageError(f'{word}: no such flag{similar(word, _FLAGS)}')
  mode = MODES[options.mode]
  own = options.checkpoint is not None and 'checkpoint' in mode.reads
  if options.config is None and not own:
    file = next((word for word in rest if '.py' in word), 'experiments/alfworld.py')
    run = ', or --checkpoint=RUN' if 'checkpoint' in mode.reads else ''
    raise UsageError(f'--config is missing: e.g. --config={file}{run}')
  for name in ('workdir', 'checkpoint', 'output', 'hosts'):
    given = getattr(options, name) is not None
    if given and name not in mode.reads:
      raise UsageError(f'--{name}: --mode={options.mode} does not read it')
    if name in mode.needs and not given:
      raise UsageError(f'--{name} is missing: --mode={options.mode} needs it')
  hosts = None if options.hosts == 'none' else options.hosts
  if hosts is not None:
    team.place(hosts)
  from sdar_jax.cli import config_file  # Slow to import: --help does without.

  run = _run(options.checkpoint) if options.config is None else None
  config = config_file.chosen(options.config, run, rest)
  return Command(options.mode, config, *_paths(options), hosts)


def _run(text: str) -> pathlib.Path:
  """Finds the directory of --checkpoint."""
  run = files.local_path(text, '--checkpoint')
  if not os.path.isdir(run):
    raise UsageError(f'--checkpoint={run}: no such directory of a run')
  return run


def _paths(options: argparse.Namespace) -> list[pathlib.Path | None]:
  paths: list[pathlib.Path | None] = []
  for name in ('workdir', 'checkpoint', 'output'):
    text = getattr(options, name)
    paths.append(None if text is None else files.local_path(text, f'--{name}'))
  workdir, checkpoint, output = paths
  if checkpoint is not None:
    _run(options.checkpoint)
  if workdir is not None:
    files.check_directory(workdir, '--workdir')
  if output is not None and options.mode == 'eval':
    files.check_file(output, '--output')
  elif output is not None:
    files.check_directory(output, '--output')
    for name in ('config.json', 'model.safetensors'):
      if os.path.exists(output / name):
        raise UsageError(
          f'--output={output}: holds a model already ({name}); choose another directory'
        )
  return paths
