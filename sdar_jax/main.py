"""Command line: `python -m sdar_jax.main --config=experiments/alfworld.py`.

Exit codes: 0 done or stopped on request, 2 wrong input, 70 training diverged, had
nothing to train on or no environment that works, 74 the disk refuses a file.
"""

import contextlib
import logging
import os
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from sdar_jax import config as config_lib
from sdar_jax import signals, workdir

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'sft', 'eval', 'play', 'export'], 'What to do.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', '', 'eval, play, export: a run whose newest checkpoint is used.'
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'eval: JSON file; export, sft: HF directory.'
)


class _UsageError(ValueError):
  """Flags that do not go together."""


def _workdir() -> pathlib.Path:
  if not _WORKDIR.value:
    raise _UsageError(f'--workdir is empty: --mode={_MODE.value} needs a directory')
  return pathlib.Path(_WORKDIR.value)


def _run(config: Any) -> None:
  mode = _MODE.value
  if mode == 'train':
    if _workdir().is_dir():
      with workdir.Workdir(_workdir(), config):
        pass  # A directory in use is refused before anything heavy is imported.
    from sdar_jax import train

    train.train(config, _workdir())
  else:
    from sdar_jax import modes

    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None
    modes.MODES[mode](config, checkpoint=_CHECKPOINT.value or None, output=output)


def _fail(error: Exception, code: int) -> int:
  """One line on stderr; SDAR_TRACEBACK=1 shows where it came from."""
  if os.environ.get('SDAR_TRACEBACK') == '1':
    raise error
  text = str(error)
  if isinstance(error, (AttributeError, KeyError)):
    text = f'--config names an unknown key: {text}'
  if 'Traceback' in text:  # ml_collections quotes the config file's own error whole.
    text = text.strip().splitlines()[-1]
  with contextlib.suppress(OSError):  # Where it goes may be a file on a full disk.
    print(f'error: {" ".join(text.split())}', file=sys.stderr)
  return code


def _main(argv: list[str]) -> int:
  try:
    flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise _UsageError('--config is missing: e.g. --config=experiments/alfworld.py')
    config_lib.validate(_CONFIG.value)
  except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as e:
    return _fail(e, 2)  # ml_collections reports bad keys and types by all of these.
  try:
    _run(_CONFIG.value)
  except FloatingPointError as error:
    return _fail(error, 70)
  except (ValueError, OSError, RuntimeError) as error:
    if isinstance(error, RuntimeError) and not hasattr(error, 'exit_code'):
      raise
    return _fail(error, getattr(error, 'exit_code', 2))
  return 0


def main() -> None:
  """Entry point."""
  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  signals.interrupt_on_sigterm()
  try:
    code = _main(sys.argv)
  except KeyboardInterrupt as stopped:  # Training asks `StopSignal` once it has begun.
    text = 'interrupted: nothing was written'
    code = _fail(RuntimeError(text), 128 + signals.number_of(stopped))
  sys.exit(code)


if __name__ == '__main__':
  main()
