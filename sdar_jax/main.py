"""Command line: `python -m sdar_jax.main --config=experiments/alfworld.py`.

`--help` lists modes, flags and exit codes; `command_line` reads them.
"""

import logging
import os
import sys
from collections.abc import Sequence

from sdar_jax import command_line, describe, files, terminal
from sdar_jax.command_line import Command
from sdar_jax.workdir import Workdir

_NO_MEMORY = (
  'lower config.rollout.slots, config.train.microbatch_rows or the length buckets'
)


def _fail(error: BaseException, code: int, hint: str = '') -> int:
  """One line on stderr; SDAR_TRACEBACK=1 shows where it came from."""
  if os.environ.get('SDAR_TRACEBACK') == '1':
    raise error
  text = files.one_line(error, 1000) + (f'; {hint}' if hint else '')
  print(f'error: {text}', file=sys.stderr)
  return code


def _main(argv: Sequence[str]) -> int:
  try:
    command = command_line.parse(argv)
    if command.mode == 'describe':
      print(describe.table(command.config), end='')
      return 0
    if command.mode == 'train' and command.workdir.is_dir():
      with Workdir(command.workdir, command.config):
        pass  # What this refuses is refused before JAX is imported.
  except (ValueError, OSError) as error:
    return _fail(error, 2)
  try:
    import jax

    from sdar_jax import checkpoint, evaluate, modes, parts, train
    from sdar_jax.envs import pool
  except (ImportError, RuntimeError, ValueError) as error:
    return _fail(error, 2, 'install the project again, or check JAX_* variables')
  try:
    parts.make_algorithm(command.config)  # There must be one, whatever the mode.
    _run(command, train, modes)
  except checkpoint.SaveError as error:
    return _fail(error, 74)
  except modes.OutputError as error:
    return _fail(error, 74)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    return _fail(error, 70, _NO_MEMORY if 'RESOURCE' in str(error) else '')
  except (
    train.NonFiniteError,
    train.EmptyStepError,
    evaluate.EvaluationError,
    pool.PoolError,
    FloatingPointError,
  ) as error:
    return _fail(error, 70)
  except (ValueError, OSError) as error:
    return _fail(error, 2)
  return 0


def _run(command: Command, train, modes) -> None:
  if command.mode == 'train':
    train.train(command.config, command.workdir)
  else:
    run = modes.MODES[command.mode]
    run(command.config, checkpoint=command.checkpoint, output=command.output)


def main() -> None:
  """Entry point."""
  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  terminal.run(_main)


if __name__ == '__main__':
  main()
