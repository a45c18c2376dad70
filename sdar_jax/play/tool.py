"""Plays an episode by hand: `sdar play --checkpoint=RUN`.

A run has its own configuration; --config=FILE.py names another, or plays without a run.

What is typed is the next action, judged by the policy and by its teacher before it is
played. A line that begins with / is a command; /help lists them. Lines may come from a
pipe. With --out, /save adds the episode to a file that config.sft.demonstrations reads.

Exit codes: 0 done; 2 wrong input; 74 the disk refuses the file; 130 stopped by Ctrl-C.
"""

import argparse
import os
import pathlib
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal

_WIDTH, _MOST = 79, 4000  # Columns; characters of an observation.
_HELP = """\
any other line  an action; /say TEXT is a whole response, as a model writes it
/think TEXT     the thought of the actions that follow
/policy         the policy plays this turn       /expert   the world's expert does
/undo           take the last turn back          /look     the whole prompt
/next           the next task                    /save     keep what was played
/help           this                             /quit     the end (or Ctrl-D)"""


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = flags.Parser('sdar play', __doc__)
  parser.add_argument('--config', metavar='FILE.py[:ARGUMENT]', help='an experiment')
  parser.add_argument(
    '--checkpoint', metavar='RUN', help='a run whose newest checkpoint is used'
  )
  parser.add_argument('--split', help='of tasks (default: config.eval.split)')
  parser.add_argument(
    '--task', default='0', metavar='N|ID', help='its number in the split, or its id'
  )
  parser.add_argument(
    '--out', metavar='FILE', help='.jsonl that /save adds episodes to'
  )
  options, rest = parser.parse(argv)
  stray = [word for word in rest if not flags.OVERRIDE.match(word)]
  if stray:
    raise flags.UsageError(f'{" ".join(stray)}: no such flag; see --help')
  if options.config is None and options.checkpoint is None:
    raise flags.UsageError(
      'name what is played: --checkpoint=RUN, or --config=experiments/alfworld.py'
    )
  return options, rest


def _first(tasks: Any, text: str) -> int:
  """Finds the task that --task names.

  Raises:
    UsageError: there is none.
  """
  if text.isdecimal() and int(text) < len(tasks):
    return int(text)
  found = (i for i in range(len(tasks)) if tasks[i].task_id == text)
  index = None if text.isdecimal() else next(found, None)
  if index is None:
    raise flags.UsageError(
      f'--task={text}: must be below {len(tasks)}, or the id of a task, such as'
      f' {tasks[0].task_id}'
    )
  return index


class Table:
  """A person's side of the episodes of a split.

  Args:
    player: world and policy.
    tasks: of the split.
    index: of the first.
    out: file of demonstrations, or None.
  """

  def __init__(self, player: Any, tasks: Any, index: int, out: pathlib.Path | None):
    from sdar_jax.play import judge, session

    self._player, self._tasks, self._index, self._out = player, tasks, index, out
    self._session, self._judge = session.Session, judge.Judge(player)
    self._thought, self._unsaved = '', 0
    if self._judge.blind:
      _show(f'({self._judge.blind})')
    self._begin()

  def _begin(self) -> None:
    task = self._tasks[self._index % len(self._tasks)]
    self._now = self._session(self._player, task)
    _show(f'{task.task_id}: {task.goal}\n{self._now.observation.text}')
    self._show_actions()

  def _show_actions(self) -> None:
    actions = self._now.observation.admissible
    if actions and not self._now.over:
      _show(f'possible: {"; ".join(actions)}')

  def take(self, line: str) -> bool:
    """Does what a line says; returns whether to go on.

    Raises:
      PlayError: it cannot be done now.
    """
    word, _, rest = line.strip().partition(' ')
    if word in ('/quit', '/exit'):
      return False
    if not word:
      return True
    if not word.startswith('/'):
      self._say(self._player.world.response(self._thought, line.strip()))
      return True
    known = {
      '/say': lambda: self._say(rest),
      '/think': lambda: setattr(self, '_thought', rest),
      '/policy': self._sample,
      '/expert': lambda: self._say(self._now.expert()),
      '/undo': self._undo,
      '/look': lambda: _show(self._player.chat.decode(self._now.fitted().ids)),
      '/next': self._next,
      '/save': self._save,
      '/help': lambda: print(_HELP),
    }
    known.get(word, lambda: print(f'{word}: no such command; /help lists them'))()
    return True

  def _sample(self) -> None:
    ids = self._now.sample()
    self._say(self._player.chat.decode(ids), ids)

  def _say(self, response: str, ids: Any = None) -> None:
    fitted = self._now.fitted()  # It says so where the episode is over.
    ids = self._player.chat.encode_response(response) if ids is None else ids
    self._judged(fitted, ids)
    turn = self._now.say(response, ids)
    self._unsaved += 1
    _show(
      f'> {turn.parsed.action}'
      + ' (malformed, or not possible)' * (not turn.parsed.valid)
    )
    _show(f'{turn.result.observation.text}\n(reward {turn.result.reward:g})')
    self._show_actions()
    if self._now.over:
      _show(f'{self._now.over} after {len(self._now.turns)} turns')

  def _judged(self, fitted: Any, ids: Any) -> None:
    """Prints the log-probs of a response, in all and token by token."""
    columns = {'student': self._judge.student(fitted, ids)}
    if not self._judge.blind:
      head = next(
        (t.fitted for t in reversed(self._now.turns) if not t.fitted.goes_on), fitted
      )
      head = head if fitted.goes_on else fitted
      task = self._now.task
      columns['teacher'], seen = self._judge.teacher(fitted, head, task, ids)
      columns['gap'] = columns['teacher'] - columns['student']
      _show(f'the teacher sees {", ".join(seen) or "nothing more"}')
    widths = ''.join(f'{name:>9}' for name in columns)
    print(f'{"nats":24}{widths}')
    for i, token in enumerate(ids):
      name = _plain(self._player.chat.decode([token])) or '(end)'
      values = ''.join(_number(column[i]) for column in columns.values())
      print(f'{name[:23]:24}{values}')
    sums = ''.join(_number(column.sum()) for column in columns.values())
    print(f'{"in all":24}{sums}')

  def _undo(self) -> None:
    self._now.undo()
    self._unsaved = max(self._unsaved - 1, 0)
    _show(f'back at turn {len(self._now.turns) + 1}\n{self._now.observation.text}')
    self._show_actions()

  def _next(self) -> None:
    if self.lost:
      print(self.lost)
    # Its environment gives way to the next one's, whatever comes of that.
    self._index, self._now.alive = self._index + 1, False
    self._begin()
    self._unsaved = 0

  def _save(self) -> None:
    from sdar_jax.rollout import recorded

    turns = self._now.recorded()
    if self._out is None or not turns:
      print(
        'nothing to keep' if self._out else 'start with --out=FILE.jsonl to keep it'
      )
      return
    text = recorded.line(self._player.world.name, self._now.task.task_id, turns)
    with terminal.uninterrupted(), files.writing(self._out):
      self._out.parent.mkdir(parents=True, exist_ok=True)
      with self._out.open('a', encoding='utf-8') as file:
        file.write(text)
    self._unsaved = 0
    print(f'{len(turns)} turns added to {self._out}')

  @property
  def lost(self) -> str:
    """Says what was played and not kept."""
    if self._out is None or not self._unsaved:
      return ''
    return f'{self._unsaved} turns were not kept: /save does that'


def _number(value: float) -> str:
  return f'{round(float(value), 2) + 0.0:9.2f}'  # The sum makes -0.0 plain 0.


def _plain(text: str) -> str:
  """Escapes what a terminal would act on."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _show(text: str) -> None:
  """Prints text of a world or model, wrapped, nothing of it obeyed."""
  cut = f'{text[:_MOST]} [{len(text) - _MOST} more characters]'
  for line in (text if len(text) <= _MOST else cut).split('\n'):
    print('\n'.join(textwrap.wrap(_plain(line), _WIDTH)))


def _lines():
  """Yields lines as they are typed, or come from a pipe."""
  while True:
    try:
      line = input('] ')
    except EOFError:
      print()
      return
    if not sys.stdin.isatty():
      print(_plain(line))  # As a terminal shows it.
    yield line


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Plays as a person says; returns the exit code."""
  options, words = _parse(argv)
  out = None
  if options.out is not None:
    out = files.local_path(options.out, '--out')
    files.check_file(out, '--out')
  run = None
  if options.checkpoint is not None:
    run = files.local_path(options.checkpoint, '--checkpoint')
    if not os.path.isdir(run):
      raise flags.UsageError(f'--checkpoint={run}: no such directory')
  # Slow to import: --help does without.
  from sdar_jax import parts as parts_lib
  from sdar_jax.cli import config_file
  from sdar_jax.play import session

  config = config_file.chosen(options.config, run, words)
  player = parts_lib.player(config, run)
  tasks = player.world.tasks(options.split or config.eval.split)
  with player.pool:
    table = Table(player, tasks, _first(tasks, options.task), out)
    try:
      for line in _lines():
        try:
          if not table.take(line):
            break
        except session.PlayError as error:
          _show(str(error))
    except terminal.Stopped as stopped:
      stopped.lost = table.lost or 'nothing is lost'
      raise
  if table.lost:
    print(table.lost)
  return 0
