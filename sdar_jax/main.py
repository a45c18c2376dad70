"""Runs `sdar`: trains, evaluates, plays, exports.

`--help` lists modes, flags and exit codes; `command_line` reads them.
"""

import contextlib
import functools
import importlib
import logging
import sys
import types
from collections.abc import Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.cli import command_line, tools
from sdar_jax.cli.command_line import Command
from sdar_jax.process import devices, memory, terminal
from sdar_jax.process.team import ALONE, place

_NO_MEMORY = 'lower config.rollout.slots, config.train.microbatch_rows or the buckets'


class _StartError(ValueError):
  """JAX or this package cannot be loaded."""


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Runs the mode that a command line asks for; returns the exit code."""
  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  try:
    if argv and argv[0] in tools.TOOLS:
      return tools.run(argv)
    _run(command_line.parse(argv), argv)
  except FloatingPointError as error:
    return terminal.fail(error, 70)
  except (RuntimeError, MemoryError) as error:
    if hasattr(error, 'exit_code') or not _is_of_a_device(error):
      raise
    full = isinstance(error, MemoryError) or 'RESOURCE' in str(error)
    return terminal.fail(error, 70, _NO_MEMORY if full else '')
  return 0


def _run(command: Command, argv: Sequence[str]) -> None:
  if command.mode == 'describe':
    from sdar_jax.cli import describe

    print(describe.table(command.config), end='')
  elif command.mode == 'train':
    _train(command, argv)
  else:
    run = _load('modes').MODES[command.mode]
    run(command.config, checkpoint=command.checkpoint, output=command.output)


def _train(command: Command, argv: Sequence[str]) -> None:
  from sdar_jax.logs import ending, sinks
  from sdar_jax.storage.workdir import Workdir

  sinks.check(command.config.log)
  with _joined(command) as team:
    if team.leads and command.workdir.is_dir():
      with Workdir(command.workdir, command.config):
        pass  # What this refuses is refused before anything heavy is imported.
    _load('train').train(command.config, command.workdir, team)
  if team.leads:
    ending.show(argv, command.workdir, command.config.steps, sys.stdout)


def _joined(command: Command) -> Any:
  """Joins the other processes of the run, if there are any."""
  if command.hosts is None:
    return contextlib.nullcontext(ALONE)
  join = _load('hosts.join', with_devices=False)  # There are none before it.
  return join.joined(place(command.hosts), command.config)


def _load(name: str, *, with_devices: bool = True) -> types.ModuleType:
  """Imports JAX and a module of this package; one line where that fails."""
  try:
    if with_devices:
      _name_devices()
    return importlib.import_module(f'sdar_jax.{name}')
  except (ImportError, RuntimeError, ValueError, AssertionError) as error:
    raise _StartError(
      f'{files.one_line(error, 500)}; install the project again, or check JAX_*'
      ' variables'
    ) from error


@functools.cache  # So that they are named once.
def _name_devices() -> None:
  """Imports JAX and prints its devices, as people read them, on stderr."""
  memory.keep()
  import jax

  try:
    found, count = jax.local_devices(), jax.process_count()
  except (RuntimeError, AssertionError):
    return  # Who needs one says why there is none.
  here = f'process {jax.process_index()} of {count}: ' if count > 1 else ''
  for line in filter(None, (devices.summary(found), devices.warning(found))):
    print(here + line, file=sys.stderr)


def _is_of_a_device(error: Exception) -> bool:
  if isinstance(error, MemoryError):
    return True
  return 'jax' in sys.modules and isinstance(
    error, sys.modules['jax'].errors.JaxRuntimeError
  )


if __name__ == '__main__':
  main()
