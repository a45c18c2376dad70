"""The user message of a turn, in our own words. Two styles.

`paper` is for real models: role, task, the last few turns, the observation and the
possible actions, then how to answer. `compact` is for the small model: what the agent
has read so far in the episode, boiled down to a few short lines.
"""

import re
from collections.abc import Sequence

from sdar_jax.envs import base, texts
from sdar_jax.envs.alfworld.belief import RoomBelief, believe
from sdar_jax.envs.alfworld.engine import NOTHING_HAPPENS
from sdar_jax.envs.base import Exchange, Observation, Task

VERSION = 1
PAPER_INSTRUCTION = (
  'First reason step by step about where things stand and what to do next, between '
  '<think> and </think>. Then give the one action you choose, word for word as in the '
  'list, between <action> and </action>.'
)
# What the compact style leaves out of the listed actions: they reveal nothing new.
_IDLE = frozenset({'help', 'look', 'inventory'})
# What ends the first observation, and must not be cut from it.
_GOAL = re.compile(r'\s*Your task is to: .*\Z', re.DOTALL)


def paper(
  task: Task, history: Sequence[Exchange], observation: Observation, length: int
) -> str:
  """Writes the prompt for real models.

  Args:
    task: for its goal.
    history: the past turns that may be shown (see `envs.base.whole`).
    observation: the current one.
    length: how many past turns to show at most.
  """
  parts = ['You act inside a household that exists only as text, one action per turn.']
  turns = len(base.whole(history))
  parts += [f'Your task is to: {task.goal}'] if turns else []
  parts += base.past_turns(history, length)
  parts += [now(turns + 1, None, observation), PAPER_INSTRUCTION]
  return '\n\n'.join(parts)


def now(turn: int, before: Observation | None, observation: Observation) -> str:
  """Writes what is seen in a turn and what can be done, or has changed."""
  listed, actions = (
    [text for text in seen.admissible if text != 'help'] if seen else ()
    for seen in (before, observation)
  )
  seen = f'Turn {turn}, you see: {observation.text}'
  return f'{seen}\n\n{base.actions_since(listed, actions)}'


def compact(
  task: Task, history: Sequence[Exchange], observation: Observation, length: int
) -> str:
  """Writes the prompt for the small model, from the texts so far.

  Lines, each only where it says something: the goal; the last actions, '?' marking one
  that did nothing; where the agent is and what cannot be taken there; what it holds;
  what can be taken; other deeds; where things that the goal names were seen; places
  already searched; places not yet searched. All but the last actions are a view of the
  whole history, since a policy without memory needs to know what it has been through;
  where `history` is only the end of it, what was seen before is not shown.
  """
  belief = believe(base.whole(history), observation)
  recent = ' '.join([*(exchange.observation for exchange in history), observation.text])
  complete = len(history) == len(base.whole(history))
  offered = observation.admissible
  takes = _takes(belief, offered)
  lines = [
    task.goal,
    _last(history, observation, length),
    _here(belief, takes),
    f'hold {_held(belief)}' if belief.holding else '',
    ' '.join(['take', *takes]) if takes else '',
    _deeds(belief, offered),
    _seen(task, belief, None if complete else recent),
  ]
  goes = [text.removeprefix('go to ') for text in offered if text.startswith('go to ')]
  searched = [name for name in goes if name in belief.contents]
  fresh = [name for name in goes if name not in belief.contents]
  lines += [' '.join(['old', *searched]) if searched else '']
  lines += [' '.join(['new', *fresh]) if fresh else '']
  return '\n'.join(line for line in lines if line)


def shorten(observation: Observation, characters: int) -> Observation:
  """Leaves out the end of an observation's list; its goal stays."""
  text = observation.text
  goal = _GOAL.search(text)
  tail = goal.group() if goal else ''
  told = text[: len(text) - len(tail)]
  text = texts.cut(told, max(characters - len(tail), 0)) + tail
  return Observation(text, observation.admissible)


def _last(history: Sequence[Exchange], observation: Observation, length: int) -> str:
  """Lists the last actions, oldest first, '?' after one without effect."""
  texts = [exchange.observation for exchange in history] + [observation.text]
  words = [
    exchange.action + ' ?' * (outcome.strip() == NOTHING_HAPPENS)
    for exchange, outcome in zip(history, texts[1:], strict=True)
  ]
  words = words[len(words) - min(length, len(words)) :]
  return 'did ' + ', '.join(words) if words else ''


def _takes(belief: RoomBelief, offered: Sequence[str]) -> list[str]:
  """Lists the objects within reach to take."""
  ending = f' from {belief.here}'
  return [
    text.removeprefix('take ').removesuffix(ending)
    for text in offered
    if text.startswith('take ') and text.endswith(ending)
  ]


def _here(belief: RoomBelief, takes: list[str]) -> str:
  if not belief.here:
    return 'at start'
  if belief.here in belief.closed:
    return f'at {belief.here} closed'
  if belief.here not in belief.contents:
    return f'at {belief.here}'
  rest = [item for item in belief.contents[belief.here] if item not in takes]
  return ' '.join(['at', belief.here, *(['with', *rest] if rest else [])])


def _held(belief: RoomBelief) -> str:
  """Names the held object with its changes: 'mug 1 clean'."""
  states = belief.states[belief.holding] if belief.holding in belief.states else ()
  return ' '.join([belief.holding, *sorted(states)])


def _deeds(belief: RoomBelief, offered: Sequence[str]) -> str:
  """Lists the other admissible actions, without idle ones."""
  deeds = []
  for text in offered:
    verb, _, rest = text.partition(' ')
    facing = verb == 'take' and rest.endswith(f' from {belief.here}')
    known = verb == 'examine' and (
      rest not in belief.receptacles or rest in belief.contents or rest in belief.closed
    )
    if verb != 'go' and not facing and not known and text not in _IDLE:
      deeds.append(text)
  return 'can ' + ', '.join(deeds) if deeds else ''


def _seen(task: Task, belief: RoomBelief, recent: str | None) -> str:
  """Lists the places of the goal's objects, other than here.

  Only places that `recent` texts name, unless that is None.
  """
  kinds = (task.metadata['object'], task.metadata['tool'])
  found = [
    f'{item} in {place}'
    for kind in kinds
    for item, place in belief.places(kind)
    if place != belief.here and (recent is None or re.search(rf'\b{place}\b', recent))
  ]
  return 'seen ' + ', '.join(found) if found else ''
