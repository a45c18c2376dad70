"""Says at a run's end what it wrote, and what can be done with it."""

import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from sdar_jax.logs.console import Console
from sdar_jax.process.flags import FLAG, OVERRIDE
from sdar_jax.storage import ledger

_WRITTEN = (
  *('metrics.jsonl', 'timing.jsonl', 'teacher.jsonl'),
  *('trajectories', 'eval', 'checkpoints'),
)
_WIDTH = 80  # Columns of a command's lines, where words are no longer.


def show(
  words: Sequence[str], workdir: pathlib.Path, steps: int, stream: TextIO | None
) -> None:
  """Prints the paths of a run's files and the commands to go on with.

  Args:
    words: of the command that ended, after the program's name.
    workdir: of the run.
    steps: that it was to train.
    stream: where to write.
  """
  console = Console(steps, stream)
  console.line('written:')
  for path in (workdir / name for name in _WRITTEN):
    if path.exists():
      console.line(f'  {path}{os.sep if path.is_dir() else ""}')
  for what, command in commands(words, workdir, steps):
    console.line(f'{what}:')
    for line in _wrapped(command):
      console.line(line)


def commands(
  words: Sequence[str], workdir: pathlib.Path, steps: int
) -> Iterable[tuple[str, list[str]]]:
  """Yields what each of the next commands does, and its words.

  Args: as of `show`.
  """
  given = _flags(words)
  main = [_python(), '-m', 'sdar_jax.main']
  is_done = (workdir / 'eval' / f'{steps:06d}.json').exists()
  more = {**given, 'config.steps': str(2 * steps)} if is_done else given
  what = f'to train on to step {2 * steps}' if is_done else 'to go on'
  yield what, [*main, *_spelled(more)]
  if any((workdir / 'trajectories').glob('*.jsonl')):
    page = str(workdir / 'episodes.html')
    yield 'to look at its episodes', [*main, 'view', str(workdir), f'--html={page}']
  step = ledger.saved_step(workdir)
  if not step:
    return
  config = {k: v for k, v in given.items() if k == 'config' or OVERRIDE.match(f'-{k}')}
  run = {**config, 'checkpoint': str(workdir)}
  if is_done:
    what = 'to compare it, with the directories of other runs behind its own'
    yield what, [main[0], '-m', 'sdar_jax.compare', str(workdir)]
  else:
    yield f'to evaluate step {step}', [*main, *_spelled({'mode': 'eval', **run})]
  output = {'output': str(workdir / f'export-{step}')}
  what = f'to export step {step} for Hugging Face'
  yield what, [*main, *_spelled({'mode': 'export', **run, **output})]


def _flags(words: Iterable[str]) -> dict[str, str | None]:
  """Flags and their values as they were given; None for one without."""
  out: dict[str, str | None] = {}
  name = ''
  for word in words:
    if FLAG.match(word):
      name, equals, value = word.lstrip('-').partition('=')
      out[name] = value if equals else None
    else:  # The value of the word before.
      out[name] = word
  return out


def _spelled(flags: dict[str, str | None]) -> list[str]:
  return [f'--{k}' if v is None else f'--{k}={v}' for k, v in flags.items()]


def _python() -> str:
  """The name under which a shell finds this interpreter."""
  if shutil.which('python') == sys.executable:
    return 'python'
  relative = os.path.relpath(sys.executable)
  return sys.executable if relative.startswith(os.pardir) else relative


def _wrapped(words: Sequence[str]) -> list[str]:
  """Lines of a shell's command: indented, and joined by backslashes."""
  first, *rest = map(shlex.quote, words)
  lines = [f'  {first}']
  for word in rest:
    if len(lines[-1]) + len(word) + len('  \\') > _WIDTH:
      lines.append(f'    {word}')
    else:
      lines[-1] += f' {word}'
  return [f'{line} \\' for line in lines[:-1]] + lines[-1:]
