"""ALFWorld as one object: tasks, engine, prompts, parser and experts.

The user message of a turn is in our own words. In the style 'paper' it is role, task,
the last few turns, the observation and the possible actions, then how to answer.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.envs import base, benchmark, texts
from sdar_jax.envs.alfworld import engine, generated, official, published, rooms
from sdar_jax.envs.alfworld import expert as experts
from sdar_jax.envs.alfworld.belief import RoomBelief, believe
from sdar_jax.envs.base import Exchange, Observation, Task

PAPER_INSTRUCTION = (
  'First reason step by step about where things stand and what to do next, between '
  '<think> and </think>. Then give the one action you choose, word for word as in the '
  'list, between <action> and </action>.'
)
# What the compact style leaves out of the listed actions: they reveal nothing new.
_IDLE = frozenset({'help', 'look', 'inventory'})
# What ends the first observation, and must not be cut from it.
_GOAL = re.compile(r'\s*Your task is to: .*\Z', re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlfworldWorld(benchmark.BenchmarkWorld):
  """ALFWorld, a household as text.

  Args:
    source: 'generated' or 'official' games.
    data_dir: where the official games lie; '' means $ALFWORLD_DATA.
    grammar: wording of official games: 'new', 'old', or 'file' for each file's own.
    size: of generated rooms, 'small' or 'full'.
    train_tasks: how many generated training games there are.
    max_turns: turns per episode (ref: 50).
    history_length: past exchanges that a prompt shows (ref: 2).
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' takes actions as the paper's code does, 'strict' only in the
      form that is asked for.
  """

  name = 'alfworld'
  prompt_version = 1
  paper_instruction = PAPER_INSTRUCTION
  demonstrators = experts.ORDERS
  grammar: str = base.setting('new', choices=official.GRAMMARS)
  size: str = base.setting('full', choices=rooms.SIZES)
  # Every pass shuffles the whole split in memory.
  train_tasks: int = base.setting(generated.SPLITS['train'], least=1, most=10_000_000)

  def _generated(self, split: str) -> base.TaskSet:
    return generated.GeneratedGames(split, self.size, train_tasks=self.train_tasks)

  def _official(self, split: str) -> base.TaskSet:
    return official.OfficialGames(self.data_dir, split, self.grammar)

  def published(self, rows: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Finds the official games that a manifest names."""
    return published.find(rows, self._official)

  def make_env(self) -> engine.AlfworldEnv:
    """Makes a fresh environment."""
    return engine.AlfworldEnv()

  def paper(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for real models."""
    parts = [
      'You act inside a household that exists only as text, one action per turn.'
    ]
    turns = len(base.whole(history))
    parts += [f'Your task is to: {task.goal}'] if turns else []
    parts += base.past_turns(history, self.history_length)
    parts += [self.now(turns + 1, None, observation), self.paper_instruction]
    return '\n\n'.join(parts)

  def now(self, turn: int, before: Observation | None, observation: Observation) -> str:
    """Writes what is seen in a turn and what can be done, or has changed."""
    listed, actions = (
      [text for text in seen.admissible if text != 'help'] if seen else ()
      for seen in (before, observation)
    )
    seen = f'Turn {turn}, you see: {observation.text}'
    return f'{seen}\n\n{base.actions_since(listed, actions)}'

  def compact(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for the small model, from the texts so far.

    Lines, each only where it says something: the goal; the last actions, '?' marking
    one that did nothing; where the agent is and what cannot be taken there; what it
    holds; what can be taken; other deeds; where things that the goal names were seen;
    places already searched; places not yet searched. All but the last actions are a
    view of the whole history, since a policy without memory needs to know what it has
    been through; where `history` is only the end of it, what was seen before is not
    shown.
    """
    belief = believe(base.whole(history), observation)
    recent = ' '.join(
      [*(exchange.observation for exchange in history), observation.text]
    )
    complete = len(history) == len(base.whole(history))
    offered = observation.admissible
    takes = _takes(belief, offered)
    lines = [
      task.goal,
      _last(history, observation, self.history_length),
      _here(belief, takes),
      f'hold {_held(belief)}' if belief.holding else '',
      ' '.join(['take', *takes]) if takes else '',
      _deeds(belief, offered),
      _seen(task, belief, None if complete else recent),
    ]
    goes = [
      text.removeprefix('go to ') for text in offered if text.startswith('go to ')
    ]
    searched = [name for name in goes if name in belief.contents]
    fresh = [name for name in goes if name not in belief.contents]
    lines += [' '.join(['old', *searched]) if searched else '']
    lines += [' '.join(['new', *fresh]) if fresh else '']
    return '\n'.join(line for line in lines if line)

  def shorten(self, observation: Observation, characters: int) -> Observation:
    """Leaves out the end of an observation's list; its goal stays."""
    text = observation.text
    goal = _GOAL.search(text)
    tail = goal.group() if goal else ''
    told = text[: len(text) - len(tail)]
    text = texts.cut(told, max(characters - len(tail), 0)) + tail
    return Observation(text, observation.admissible)

  def expert(self, kind: str, seed: int = 0) -> experts.ObservingExpert:
    """Makes a scripted expert: 'likely', or 'blind' (ordered by `seed`)."""
    self._check_kind(kind)
    return experts.ObservingExpert(kind, seed)

  def mistake(self, observation: Observation, random: Any) -> str:
    """Draws an admissible action, or one with a wrong name."""
    action = super().mistake(observation, random)
    if random.random() < 0.5:  # Something the world will not understand.
      action = action.rpartition(' ')[0] + f' {int(random.integers(1, 30))}'
    return action


def _last(history: Sequence[Exchange], observation: Observation, length: int) -> str:
  """Lists the last actions, oldest first, '?' after one without effect."""
  texts = [exchange.observation for exchange in history] + [observation.text]
  words = [
    exchange.action + ' ?' * (outcome.strip() == engine.NOTHING_HAPPENS)
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
