"""Shows the episodes of a run: `sdar view RUN [RUN2]`. Host, no JAX.

In the terminal, an episode turn by turn: what the student saw, what the teacher saw
beyond it, and the sampled tokens on the colour of their gate, or of what else --by
names. With --html one page that needs no network has all episodes of the run, to be
sorted, filtered and laid side by side.

Exit codes: 0 done; 2 nothing to show, or wrong input; 74 the disk refuses the page.
"""

import argparse
from collections.abc import Sequence

from sdar_jax import files
from sdar_jax.process import flags, terminal

_BY = ('gate', 'gap', 'advantage', 'student', 'teacher', 'entropy', 'mask')


def arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Reads a command line."""
  parser = flags.Parser(
    'sdar view',
    'Shows the episodes of a run, their tokens on the colours of their gates.',
    'exit codes: 0 done; 2 nothing to show, or wrong input; 74 the disk refuses the'
    ' page.',
  )
  add = parser.add_argument
  add('run', metavar='RUN', help='directory of a run')
  add('run2', metavar='RUN2', nargs='?', help='of another, shown beside it')
  add('--step', type=int, help='episodes of this step only')
  add('--kind', choices=('train', 'eval'), help='of training, or of evaluations only')
  add('--task', metavar='ID', help='of this task, or whose id has this in it')
  add('--group', type=int, metavar='G', help='of this group')
  add('--member', type=int, metavar='M', help='this member of each group')
  add(
    '--outcome', metavar='NAME', help='that ended so: success, failure, max_turns ...'
  )
  order = parser.add_mutually_exclusive_group()
  order.add_argument('--best', action='store_true', help='the best one first')
  order.add_argument('--worst', action='store_true', help='the worst one first')
  add('--by', choices=_BY, help='what colours tokens (default: gate)')
  add('--list', action='store_true', help='list episodes instead of showing one')
  add('--limit', type=int, metavar='N', help='rows of the list, or episodes of a page')
  add('--html', metavar='FILE', help='write a page instead')
  options = parser.parse_all(argv)
  _check(options)
  return options


def _check(options: argparse.Namespace) -> None:
  """Raises UsageError where a word would be ignored."""
  page, listed = options.html is not None, options.list
  for name, idle, what in (
    ('list', listed and page, '--html writes all of them'),
    ('by', options.by and (page or listed), 'only a single episode shows tokens'),
    ('limit', options.limit and not (page or listed), 'it needs --list or --html'),
  ):
    if idle:
      raise flags.UsageError(f'--{name}: {what}')
  if options.limit is not None and options.limit < 1:
    raise flags.UsageError(f'--limit={options.limit}: must be at least 1')


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Shows what a command line asks for; returns the exit code."""
  options, output = arguments(argv), None
  if options.html is not None:
    output = files.local_path(options.html, '--html')
    files.check_file(output, '--html')
  # Slow to import: --help does without.
  from sdar_jax.look import choice, folder

  names = [name for name in (options.run, options.run2) if name is not None]
  paths = [files.local_path(name, 'RUN') for name in names]
  runs = [folder.read(path, options.step) for path in paths]
  order = 'best' if options.best else 'worst' if options.worst else None
  names = ('kind', 'step', 'task', 'group', 'member', 'outcome')
  asked = choice.Choice(**{name: getattr(options, name) for name in names}, order=order)
  shown = [(i, h) for i, run in enumerate(runs) for h in asked(run.episodes)]
  start, beside = choice.opened(shown, order is not None)
  if output is not None:
    return _write(output, runs, shown, start, beside, options.limit or 1000)
  from sdar_jax.look import screen

  if options.list:
    screen.listing(runs, shown, options.limit or 50)
  else:
    by = options.by or 'gate'
    screen.episodes(runs, shown[start], beside and shown[beside], by)
  return 0


def _write(output, runs, shown, start, beside, limit) -> int:
  """Writes the page; returns the exit code."""
  from sdar_jax.look import page

  text = page.page(runs, shown, start=start, beside=beside, limit=limit)
  with files.writing(output):
    output.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomic(output, text.encode())
  print(f'{output}: {len(shown)} episodes, {len(text) / 2**20:.1f} MiB')
  return 0


if __name__ == '__main__':
  main()
