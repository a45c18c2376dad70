"""What a command line says, the config file and its overrides included. No JAX.

Nothing on a command line is ignored: words that are no flags, flags that are unknown,
given twice or empty, and flags that a mode does not read are errors of one line.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.process.flags import FLAG, OVERRIDE, Parser, UsageError, similar


@dataclasses.dataclass(frozen=True)
class Mode:
  """What `main` can do.

  Attributes:
    summary: for --help.
    reads: flags besides --config and --mode.
    needs: those of them that must be given.
  """

  summary: str
  reads: tuple[str, ...]
  needs: tuple[str, ...] = ()


MODES = {
  'train': Mode('train, or go on with it', ('workdir',), ('workdir',)),
  'sft': Mode('imitate the expert', ('checkpoint', 'output'), ('output',)),
  'eval': Mode('play the panel of config.eval', ('checkpoint', 'output')),
  'play': Mode('show one episode, turn by turn', ('checkpoint',)),
  'export': Mode(
    'write a Hugging Face directory', ('checkpoint', 'output'), ('output',)
  ),
  'describe': Mode('print every key, its value, bound and meaning', ()),
}
_FLAGS = ('--config', '--workdir', '--mode', '--checkpoint', '--output', '--help')
_EXIT_CODES = """\
exit codes: 0 done, or training stopped on request; 2 wrong input; 70 training diverged,
had nothing to train on, or no environment or device that works; 74 the disk refuses
what is to be kept; 128+N another mode than train was stopped by signal N.
SDAR_TRACEBACK=1 shows where an error came from."""


@dataclasses.dataclass(frozen=True)
class Command:
  """What the command line of `main` asks for; paths are None where it names none."""

  mode: str
  config: ml_collections.ConfigDict
  workdir: pathlib.Path | None
  checkpoint: pathlib.Path | None
  output: pathlib.Path | None


def _parser() -> Parser:
  modes = '\n'.join(f'  {name:9} {mode.summary}' for name, mode in MODES.items())
  parser = Parser(
    prog='python -m sdar_jax.main',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description='Trains, evaluates and exports agents.',
    epilog=f'modes:\n{modes}\n\n{_EXIT_CODES}',
  )
  parser.add_argument(
    '--config', metavar='FILE.py[:ARGUMENT]', help='experiment, as experiments/*.py'
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
    '--checkpoint', metavar='RUN', help='a run whose newest checkpoint is used'
  )
  parser.add_argument(
    '--output', metavar='PATH', help='eval: JSON file; export, sft: directory'
  )
  parser.add_argument_group(
    'config keys',
    '--config.KEY=VALUE, e.g. --config.steps=40; --mode=describe lists them',
  )
  return parser


def parse(argv: Sequence[str]) -> Command:
  """Reads and checks the command line of `main`, the config file and all values.

  Args:
    argv: words after the program's name.

  Raises:
    ValueError: one line saying what is wrong.
  """
  options, rest = _parser().parse(argv)
  for word in rest:
    if FLAG.match(word) and '.' not in word.partition('=')[0]:
      raise UsageError(f'{word}: no such flag{similar(word, _FLAGS)}')
  if options.config is None:
    file = next((word for word in rest if '.py' in word), 'experiments/alfworld.py')
    raise UsageError(f'--config is missing: e.g. --config={file}')
  mode = MODES[options.mode]
  for name in ('workdir', 'checkpoint', 'output'):
    given = getattr(options, name) is not None
    if given and name not in mode.reads:
      raise UsageError(f'--{name}: --mode={options.mode} does not read it')
    if name in mode.needs and not given:
      raise UsageError(f'--{name} is missing: --mode={options.mode} needs it')
  config = load_config(options.config)
  _override(config, rest)
  config_lib.validate(config)
  config_lib.resolve_paths(config)
  return Command(options.mode, config, *_paths(options))


def _paths(options: argparse.Namespace) -> list[pathlib.Path | None]:
  paths: list[pathlib.Path | None] = []
  for name in ('workdir', 'checkpoint', 'output'):
    text = getattr(options, name)
    paths.append(None if text is None else files.local_path(text, f'--{name}'))
  workdir, checkpoint, output = paths
  if workdir is not None:
    files.check_directory(workdir, '--workdir')
  if checkpoint is not None and not os.path.isdir(checkpoint):
    raise UsageError(f'--checkpoint={checkpoint}: no such directory of a run')
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


def load_config(text: str) -> ml_collections.ConfigDict:
  """The config of FILE.py or FILE.py:ARGUMENT, locked.

  Args:
    text: the value of --config.

  Raises:
    UsageError: the file or its `get_config` is missing or fails, in one line.
  """
  name, colon, argument = text.partition(':')
  path = files.local_path(text if '://' in text else name, '--config')
  arguments = [argument] if colon else []
  return call_file(path, f'--config={text}', *arguments).lock()


def call_file(
  path: pathlib.Path, said: str, *arguments: str
) -> ml_collections.ConfigDict:
  """What `get_config` of a Python file of the user's returns.

  Args:
    path: of the file.
    said: flag and value that name it, for errors.
    arguments: of `get_config`.

  Raises:
    UsageError: the file or the function is missing or fails, in one line.
  """
  function = getattr(_load_module(path, said), 'get_config', None)
  if not callable(function):
    raise UsageError(f'{said}: has no function get_config')
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    what = 'takes no argument: remove what follows the colon'
    if not arguments:
      what = f'needs an argument: --config={path}:ARGUMENT'
    raise UsageError(f'{said}: get_config {what}') from None
  config = _guarded(path, said, function, *arguments)
  if not isinstance(config, ml_collections.ConfigDict):
    kind = type(config).__name__
    raise UsageError(f'{said}: get_config() returns {kind}: must be a ConfigDict')
  return config


def _load_module(path: pathlib.Path, said: str) -> Any:
  """Runs a Python file of the user's.

  Args:
    path: of the file.
    said: flag and value that name it, for errors.

  Raises:
    UsageError: it is not there, no Python, or fails, in one line.
  """
  if not os.path.isfile(path):
    what = 'is a directory' if os.path.isdir(path) else 'no such file'
    raise UsageError(f'{said}: {what}; give a Python file with get_config()')
  if path.suffix != '.py':
    raise UsageError(f'{said}: must be a Python file, named .py')
  root = str(
    path.absolute().parent.parent
  )  # So that a checkout's files find their own.
  if root not in sys.path:
    sys.path.append(root)
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  _guarded(path, said, spec.loader.exec_module, module)
  return module


def _guarded(path: pathlib.Path, said: str, function: Any, *arguments: Any) -> Any:
  """Calls into a file of the user's, where anything may go wrong."""
  try:
    return function(*arguments)
  except SyntaxError as error:
    here = error.filename in (None, str(path))
    where = ('' if here else f'{error.filename} ') + f'line {error.lineno or 1}'
    raise UsageError(f'{said}: {where}: SyntaxError: {error.msg}') from error
  except (Exception, SystemExit) as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(path)
    ]
    where = ''
    if not isinstance(error, ValueError):  # That is how a file says what it wants.
      where = f'line {lines[-1]}: ' if lines else ''
      where += f'{type(error).__name__}: '
    raise UsageError(f'{said}: {where}{files.one_line(error, 500)}') from error


def _override(config: ml_collections.ConfigDict, words: Sequence[str]) -> None:
  """Sets the keys that words such as --config.steps=40 name."""
  keys = config_lib.flatten(config)
  known = [f'--config.{key}' for key in keys]
  for word in words:
    match = OVERRIDE.match(word)
    if match and match[2] not in keys:
      inside = [key for key in keys if key.startswith(f'{match[2]}.')]
      hint = f': no such key{similar(word, known)}'
      if inside:
        hint = f': is a section; name a key of it, such as --config.{inside[0]}'
      raise UsageError(f'--config.{match[2]}{hint}')
    if FLAG.match(word) and not match:
      raise UsageError(f'{word}: no such flag{similar(word, known)}')
  values = absl_flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=['main', *words]
    )
    rest = values(['main', *words])[1:]
  except (absl_flags.Error, ValueError, TypeError) as error:
    raise UsageError(_cleaned(error, keys)) from error
  loose = [word for word in rest if not OVERRIDE.match(word)]
  if loose:
    spelled = [_spelled(word, keys) for word in loose]
    known_words = ' '.join(word for word in spelled if word)
    hint = f': write {known_words}' if known_words else ''
    raise UsageError(f'{" ".join(loose)}: no flags, which begin with --{hint}')


def _spelled(word: str, keys: Mapping[str, Any]) -> str:
  """The flag that a word such as seed=7 or config.seed=7 stands for; '' for none."""
  name, equals, value = word.lstrip('+').partition('=')
  key = name.removeprefix('config.')
  if equals and key in keys:
    return f'--config.{key}={value}'
  return f'--config={word}' if '.py' in word else ''


def _cleaned(error: Exception, keys: Mapping[str, Any]) -> str:
  """What is wrong with the value of an override."""
  text = re.sub(r'^flag (--\S)', r'\1', files.one_line(error, 300))
  match = re.match(r'--config\.([^=]*)=(.*?): ', text)
  if not match or match[1] not in keys:
    return text
  wanted = "a tuple such as '(64, 128)'"
  if not isinstance(keys[match[1]], list):
    wanted = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}[
      type(keys[match[1]]).__name__
    ]
  return f'--config.{match[1]}={match[2]}: must be {wanted}'
