"""Lessons from a step's episodes: texts of privileged blocks. No JAX.

A context names a function from a row and the other episodes of its group to blocks, the
most wanted first. Two contexts that are compared word their blocks alike, so that
nothing but what they tell differs. `prompts.teacher` knows all contexts:

'skills': the task's skills.
'other_view': the plain prompt (named `PLAIN`) where the student's showed skills,
  else the skills. (UCOB, arXiv 2606.29502)
'sibling': the actions of another episode of the group that solved the task, the
  shortest that fits. (SDPO, arXiv 2601.20802)
'feedback': what the world answered to this turn and how the episode ended; only
  the end where both do not fit. (SDPO, arXiv 2601.20802)
'contrast': the actions of another episode that solved the task, and those of one
  that failed and that are not among them, the shortest pair that fits. Ours for
  the DO/AVOID prior that a language model writes in GRSD (arXiv 2607.28076); a
  row of whose group no two others ended differently gets none.
'observed': what the world answered to this turn; 'unobserved': the same with the
  answer taken out. (OCSD, arXiv 2608.04788)
'right_hint': the actions of another episode that solved the task; 'wrong_hint':
  those of one that did not, under the same words. (RLCSD, arXiv 2606.11709)
'mistake': as 'wrong_hint', the row's own episode first where it failed. (SIPO,
  arXiv 2609.36742)
'none': the student's own prompt, id by id (named `PLAIN`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sdar_jax.batching.rows import Row
from sdar_jax.trajectory import Outcome, Trajectory

Others = Sequence[Trajectory]  # Of a row's group, the shortest first.
Block = tuple[tuple[str, ...], str]  # Names of what it shows, and the text.

UNSEEN = '(not shown)'  # Stands where an answer was taken out.
_SHUFFLES = 64  # Orders of words that are tried for one of equal length.
_SPACE = re.compile(r'(\s+)')


def _solutions(row: Row, others: Others) -> Iterator[Block]:
  for trajectory in others:
    actions = _actions(trajectory)
    if trajectory.success and actions:
      block = '\n'.join(['this solved it:', *actions])
      yield (f'sibling/{trajectory.member}',), block


def _answers(row: Row, others: Others) -> Iterator[Block]:
  end, answer = f'the end: {_ending(row.trajectory.outcome)}', _next(row)
  if answer:
    yield ('answer', 'outcome'), f'what came next:\n{answer}\n{end}'
  yield ('outcome',), end


def _observed(row: Row, others: Others) -> Iterator[Block]:
  if answer := _next(row):
    yield ('answer',), f'what came next:\n{answer}'


def _unobserved(row: Row, others: Others) -> Iterator[Block]:
  if _next(row):
    yield ('unseen',), f'what came next:\n{UNSEEN}'


def _contrasts(row: Row, others: Others) -> Iterator[Block]:
  for good in others:
    wanted = _actions(good)
    if not good.success or not wanted:
      continue
    for bad in others:
      # In the order played, each once: failures go round in circles.
      unwanted = dict.fromkeys(a for a in _actions(bad) if a not in wanted)
      if not bad.success and unwanted:
        block = '\n'.join(['do:', *wanted, 'avoid:', *unwanted])
        yield (f'do/{good.member}', f'avoid/{bad.member}'), block


def _right(row: Row, others: Others) -> Iterator[Block]:
  for trajectory in others:
    if trajectory.success:
      yield from _attempt(f'do/{trajectory.member}', trajectory)


def _wrong(row: Row, others: Others) -> Iterator[Block]:
  for trajectory in others:
    if not trajectory.success:
      yield from _attempt(f'avoid/{trajectory.member}', trajectory)


def _mistakes(row: Row, others: Others) -> Iterator[Block]:
  if not row.trajectory.success:
    yield from _attempt('own', row.trajectory)
  yield from _wrong(row, others)


def _attempt(name: str, trajectory: Trajectory) -> Iterator[Block]:
  if actions := _actions(trajectory):
    yield (name,), '\n'.join(['one way to play it:', *actions])


def _next(row: Row) -> str:
  """What the world answered to a turn; '' to the last."""
  turns, following = row.trajectory.turns, row.turn_id + 1
  return turns[following].observation.strip() if following < len(turns) else ''


def _actions(trajectory: Trajectory) -> list[str]:
  """Lists the admissible actions in order, each on a line."""
  played = (turn.action for turn in trajectory.turns if turn.admissible)
  lines = (' '.join(action.split()) for action in played)
  return [line for line in lines if line]


def _ending(outcome: Outcome) -> str:
  if outcome is Outcome.SUCCESS:
    return 'solved'
  return 'out of turns' if outcome is Outcome.MAX_TURNS else 'not solved'


BLOCKS: dict[str, Callable[[Row, Others], Iterator[Block]]] = {
  'sibling': _solutions,
  'feedback': _answers,
  'contrast': _contrasts,
  'observed': _observed,
  'unobserved': _unobserved,
  'right_hint': _right,
  'wrong_hint': _wrong,
  'mistake': _mistakes,
}


def rank(*names: str) -> int:
  """Orders choices by identity alone: a number that names decide."""
  text = json.dumps(names).encode()
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big')


def shuffled(block: str, name: str, size: Callable[[str], int]) -> str | None:
  """Permutes the words of a block, to one of equal size that differs.

  White space stays where it is. Which order is taken `name` and the block decide.

  Args:
    block: the text.
    name: of the task.
    size: counts the tokens of a text.

  Returns:
    The text, or None where no order tried is as long and unlike the block.
  """
  parts = _SPACE.split(block)
  words, wanted = parts[::2], size(block)
  for attempt in range(_SHUFFLES):
    order = np.random.default_rng(rank(name, block, str(attempt)))
    parts[::2] = [words[i] for i in order.permutation(len(words))]
    text = ''.join(parts)
    if text != block and size(text) == wanted:
      return text
  return None
