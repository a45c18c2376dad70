"""The user message of a turn, in our own words. Two styles.

`paper` is for real models: the question, the last searches with all that they found,
where the episode stands, then how to answer. `compact` is for the small model: the
question, every search within the window with the first sentence of each document, and
how many turns are left, all in lower case.
"""

import re
from collections.abc import Iterator, Sequence

from sdar_jax.envs import base
from sdar_jax.envs.base import Exchange, Observation, Task
from sdar_jax.envs.search_qa import engine

VERSION = 1
PAPER_INSTRUCTION = (
  'First think about what is known so far and what is still missing, between <think> '
  'and </think>. Then do one of two things. If something is missing, write a short '
  'query between <search> and </search>; the documents that fit it best will be shown '
  'to you. If you know enough, write only the answer itself, as briefly as it can be '
  'said, between <answer> and </answer>; that ends the task.'
)
_SENTENCE_END = re.compile(r'[.?!](?= |$)')
_MAX_WORDS = 16  # Of a document in the compact style.


def _turns(
  history: Sequence[Exchange], observation: Observation, length: int
) -> Iterator[tuple[int, str | None, str]]:
  """Yields (turn, action, outcome) of the last `length` turns.

  The newest result is shown even where its turn is not: then the action is None.
  """
  past = base.whole(history)
  results = [exchange.observation for exchange in past[1:]] + [observation.text]
  turns = [(i, e.action, r) for i, (e, r) in enumerate(zip(past, results), start=1)]
  shown = min(length, len(history))
  if turns and length and not shown:
    yield turns[-1][0], None, observation.text
  yield from turns[len(turns) - shown :]


def paper(
  task: Task,
  history: Sequence[Exchange],
  observation: Observation,
  length: int,
  max_turns: int,
) -> str:
  """Writes the prompt for real models.

  Args:
    task: for its question.
    history: the past turns that may be shown (see `envs.base.whole`).
    observation: what came of the last turn.
    length: how many past turns to show at most.
    max_turns: turns per episode.
  """
  parts = [
    'You answer a question with the help of a library that you can search, one search '
    'per turn.',
    f'Question: {engine.question_text(task.goal)}',
  ]
  for turn, action, result in _turns(history, observation, length):
    if action is None:
      parts.append(f'In turn {turn} you got\n{result}')
      continue
    kind, text = engine.read_action(action)
    told = f'you searched for: {text}' if kind else 'you did nothing that counts'
    parts.append(f'In turn {turn} {told}\n{result}')
  parts += [_standing(len(base.whole(history)) + 1, max_turns), PAPER_INSTRUCTION]
  return '\n\n'.join(parts)


def now(
  turn: int, before: Observation | None, observation: Observation, max_turns: int
) -> str:
  """Writes what came of the turn before, and where the episode stands."""
  del before  # What can be done does not change.
  return f'{observation.text}\n\n{_standing(turn, max_turns)}'


def _standing(turn: int, max_turns: int) -> str:
  standing = f'This is turn {turn} of {max_turns}.'
  if turn >= max_turns:
    standing += ' It is the last one: only an answer still counts.'
  return standing


def compact(
  task: Task,
  history: Sequence[Exchange],
  observation: Observation,
  length: int,
  max_turns: int,
) -> str:
  """Writes the prompt for the small model.

  Lines: the question; for each past turn `query` and what was searched for, then `doc`
  and a sentence for each document (`query` alone where nothing was searched, or where
  there is room for no query); how many turns are left, this one included. Arguments as
  for `paper`.
  """
  lines = [engine.question_text(task.goal).lower()]
  for _, action, result in _turns(history, observation, length):
    kind, text = engine.read_action(action or '')
    lines.append(f'query {text.lower()}' if kind == engine.SEARCH else 'query')
    lines += [f'doc {sentence}' for sentence in sentences(result)]
  lines.append(f'left {max(max_turns - len(base.whole(history)), 1)}')
  return '\n'.join(lines)


def shorten(observation: Observation, characters: int) -> Observation:
  """Cuts an observation's documents, longest first; other texts stay."""
  found = engine.read_documents(observation.text)
  if not found:
    return observation
  frame = len(engine.format_documents(found, 0))
  text = engine.format_documents(found, max(characters - frame, 0))
  return Observation(text, observation.admissible)


def sentences(observation: str) -> list[str]:
  """Writes the compact style's line for each document.

  The first sentence in lower case, without its final mark and without what lies beyond
  its sixteenth word, headed by the document's title where it does not name it.
  """
  out = []
  for passage in engine.read_documents(observation):
    first = _SENTENCE_END.split(passage.text, maxsplit=1)[0].lower()
    title = passage.title.lower()
    told = first if title in first else f'{title} {first}'
    out.append(' '.join(told.split()[:_MAX_WORDS]))
  return out
