"""Command line: `python -m sdar_jax.main --config=experiments/alfworld.py`.

`--help` lists modes, flags and exit codes; `command_line` reads them.
"""

import contextlib
import importlib
import logging
import os
import sys
import types
from collections.abc import Sequence

from sdar_jax import files
from sdar_jax.cli import command_line, describe
from sdar_jax.cli.command_line import Command
from sdar_jax.logs import sinks
from sdar_jax.process import terminal
from sdar_jax.storage.workdir import Workdir

_NO_MEMORY = (
  'lower config.rollout.slots, config.train.microbatch_rows or the length buckets'
)


class _StartError(ValueError):
  """JAX or this package cannot be loaded."""


def _fail(error: BaseException, code: int, hint: str = '') -> int:
  """One line on stderr; SDAR_TRACEBACK=1 shows where it came from."""
  if os.environ.get('SDAR_TRACEBACK') == '1':
    raise error
  text = files.one_line(error, 1000) + (f'; {hint}' if hint else '')
  with contextlib.suppress(OSError):  # Where it goes may be a file on a full disk.
    print(f'error: {text}', file=sys.stderr)
  return code


def _main(argv: Sequence[str]) -> int:
  try:
    command = command_line.parse(argv)
    if command.mode == 'describe':
      print(describe.table(command.config), end='')
    elif command.mode == 'train':
      _train(command, argv)
    else:
      run = _load('modes').MODES[command.mode]
      run(command.config, checkpoint=command.checkpoint, output=command.output)
  except FloatingPointError as error:
    return _fail(error, 70)
  except (ValueError, OSError) as error:
    return _fail(error, getattr(error, 'exit_code', 2))
  except (RuntimeError, MemoryError) as error:
    if hasattr(error, 'exit_code'):
      return _fail(error, error.exit_code)
    if not _is_of_a_device(error):
      raise
    return _fail(error, 70, _NO_MEMORY if 'RESOURCE' in str(error) else '')
  return 0


def _train(command: Command, argv: Sequence[str]) -> None:
  log = command.config.log
  sinks.check(tensorboard=log.tensorboard, wandb=bool(log.wandb_project))
  if command.workdir.is_dir():
    with Workdir(command.workdir, command.config):
      pass  # What this refuses is refused before anything heavy is imported.
  _load('train').train(command.config, command.workdir)
  _load('logs.ending').show(argv, command.workdir, command.config.steps, sys.stdout)


def _load(name: str) -> types.ModuleType:
  """Imports JAX and a module of this package; one line where that fails."""
  try:
    import jax

    jax.devices()
    return importlib.import_module(f'sdar_jax.{name}')
  except (ImportError, RuntimeError, ValueError, AssertionError) as error:
    raise _StartError(
      f'{files.one_line(error, 500)}; install the project again, or check JAX_*'
      ' variables'
    ) from error


def _is_of_a_device(error: Exception) -> bool:
  if isinstance(error, MemoryError):
    return True
  return 'jax' in sys.modules and isinstance(
    error, sys.modules['jax'].errors.JaxRuntimeError
  )


def main() -> None:
  """Entry point."""
  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  terminal.run(_main)


if __name__ == '__main__':
  main()
