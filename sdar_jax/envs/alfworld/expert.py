"""A scripted expert, guided by its observations alone.

It says what to do next from wherever an episode stands, also after actions that it did
not choose, so it can label any state that a policy gets into.
"""

import random
from collections.abc import Iterable

from sdar_jax.envs.alfworld import instruction
from sdar_jax.envs.alfworld.belief import TREATMENTS, RoomBelief, class_of
from sdar_jax.envs.alfworld.instruction import LOOK, TWO
from sdar_jax.envs.alfworld.rooms import HOUSEHOLD
from sdar_jax.envs.base import Observation, Task

ORDERS = ('likely', 'blind')
_OPENABLE = frozenset(name.lower() for name in HOUSEHOLD.openable)
_LAMP_WEIGHTS = {'desk': 8, 'sidetable': 7, 'dresser': 5, 'coffeetable': 3, 'shelf': 2}
_POSSIBLE = 1.0  # Weight of a place that may contain the object but rarely does.
_UNKNOWN = 0.01  # Weight of a place that is not known to contain such objects.
_SIGNS = (('toilet', 'bathroom'), ('fridge', 'kitchen'), ('bed', 'bedroom'))


def room_kind(receptacles: Iterable[str]) -> str:
  """Infers the kind of room from its receptacles ('bed 1', ...)."""
  classes = {class_of(name) for name in receptacles}
  for sign, kind in _SIGNS:
    if sign in classes:
      return kind
  return 'living'


def likely_places(room: str, kind: str) -> dict[str, float]:
  """Weighs receptacle classes as places of an object of `kind`.

  Class names are in lower case. Weights come from household.json: those of the room's
  kind, or of all kinds when objects of this class are not at home there.
  """
  if kind == 'desklamp':
    return dict(_LAMP_WEIGHTS)
  weights = {
    name.lower(): _POSSIBLE
    for name, objects in HOUSEHOLD.contains.items()
    if kind in {item.lower() for item in objects}
  }
  rows = {
    where: row
    for (where, item), row in HOUSEHOLD.places.items()
    if item.lower() == kind
  }
  for row in [rows[room]] if room in rows else rows.values():
    weights |= {name.lower(): float(weight) for name, weight in row.items()}
  return weights


class ObservingExpert:
  """Solves games from observations and admissible commands alone.

  Args:
    order: 'likely' looks into likely places first, near ones before far ones;
      'blind' into all receptacles in an order that the seed and the task decide.
    seed: of the blind order.

  Attributes:
    asked: what the game asks for.
    belief: what has been observed.
  """

  def __init__(self, order: str = 'likely', seed: int = 0):
    if order not in ORDERS:
      raise ValueError(f'order {order!r}: one of {", ".join(ORDERS)}')
    self.order = order
    self.seed = seed

  def reset(self, task: Task, observation: Observation) -> None:
    """Starts an episode from its first observation."""
    self.asked = instruction.read(task.goal)
    self.belief = RoomBelief()
    self._salt = f'{self.seed}/{task.task_id}'
    self._take_in(observation)
    room = room_kind(self.belief.receptacles)
    wanted = 'desklamp' if self.asked.task_type == LOOK else ''
    self._weights = {
      kind: likely_places(room, kind) for kind in (self.asked.object, wanted) if kind
    }

  def observe(self, action: str, observation: Observation) -> None:
    """Takes in the outcome of an action, its own or another's."""
    del action  # The text says what happened.
    self._take_in(observation)

  def plan(self, observation: Observation) -> tuple[str, str]:
    """Gives the purpose in a few words, and the action."""
    offered = dict.fromkeys(observation.admissible)
    thought, action = self._decide(offered)
    if action:
      return thought, action
    fallback = [text for text in offered if text.startswith('go to ')]
    return 'look elsewhere', (fallback or ['look'])[0]

  def _take_in(self, observation: Observation) -> None:
    self.belief.read(observation.text)
    self.belief.note_refusals(observation.admissible)

  def _decide(self, offered: dict[str, None]) -> tuple[str, str]:
    """Chooses the subgoal at hand and the action towards it, or ''."""
    belief, asked = self.belief, self.asked
    held = belief.holding
    if held and class_of(held) != asked.object:
      return f'put down {held}', self._put_down(held, offered)
    if not held:
      source = self._source(offered)
      if source:
        return f'take {source[0]}', self._take(*source, offered)
      return f'find {asked.object}', self._search(asked.object, offered)
    if asked.task_type == LOOK:
      return self._light(offered)
    if self._lacks_treatment(held) and (held, asked.tool) not in belief.inert:
      verb, _ = TREATMENTS[asked.tool]
      return f'{verb} {held}', self._treat(f'{verb} {held}', offered)
    return f'put {held} in {asked.target}', self._put(held, offered)

  def _reach(self, place: str, offered: dict[str, None]) -> str:
    """Gives the command to go to `place`, or '' if it is within reach."""
    command = f'go to {place}'
    return command if command in offered else ''

  def _source(self, offered: dict[str, None]) -> tuple[str, str] | None:
    """Chooses the nearest known (object, receptacle) to take from."""
    belief, asked = self.belief, self.asked
    done = self._destination() if asked.task_type == TWO else ''
    options = [
      (item, place)
      for item, place in belief.places(asked.object)
      if (item, place) not in belief.refused
      and place != done
      and (asked.tool or class_of(place) != asked.target or asked.task_type == TWO)
    ]
    return min(
      options,
      key=lambda pair: (
        self._lacks_treatment(pair[0]),
        f'take {pair[0]} from {pair[1]}' not in offered,
        bool(self._reach(pair[1], offered)),
        *reversed(pair),
      ),
      default=None,
    )

  def _take(self, item: str, place: str, offered: dict[str, None]) -> str:
    command = f'take {item} from {place}'
    if command in offered:
      return command
    return self._reach(place, offered) or self._look_into(place, offered)

  def _look_into(self, place: str, offered: dict[str, None]) -> str:
    """Opens or examines a place within reach."""
    for command in (f'open {place}', f'examine {place}'):
      if command in offered:
        return command
    return ''

  def _search(self, kind: str, offered: dict[str, None]) -> str:
    """Gives the next step towards the best place not looked into."""
    belief = self.belief
    options = belief.unsearched
    if not options:  # Something is not where it was seen: go round again.
      options = [name for name in belief.receptacles if self._reach(name, offered)]
      options.sort(key=lambda name: belief.visits.get(name, 0))
      return self._reach(options[0], offered) if options else ''
    order = sorted(options, key=lambda name: self._rank(kind, name, offered))
    for place in order:
      command = self._reach(place, offered) or self._look_into(place, offered)
      if command:
        return command
    return ''

  def _rank(self, kind: str, place: str, offered: dict[str, None]) -> tuple:
    """Sorts places to search: smallest first."""
    if self.order == 'blind':
      return (random.Random(f'{self._salt}/{place}').random(),)
    weights = self._weights[kind]
    name = class_of(place)
    weight = weights[name] if name in weights else _UNKNOWN
    if name == self.asked.target and not self.asked.tool:
      weight *= 0.1  # If it were there, the task would be done.
    closed = place in self.belief.closed or (
      place not in self.belief.visits and name in _OPENABLE
    )
    cost = bool(self._reach(place, offered)) + closed
    return (-weight / max(cost, 1), cost, place)

  def _lacks_treatment(self, item: str) -> bool:
    """Tells whether `item` is still to be cleaned, heated or cooled."""
    if self.asked.tool not in TREATMENTS:
      return False
    _, result = TREATMENTS[self.asked.tool]
    return item not in self.belief.states or result not in self.belief.states[item]

  def _treat(self, deed: str, offered: dict[str, None]) -> str:
    """Takes the held object to a tool and does the deed ('clean mug 1')."""
    tools = [
      name for name in self.belief.receptacles if class_of(name) == self.asked.tool
    ]
    for tool in tools:
      command = f'{deed} with {tool}'
      if command in offered:
        return command
    reachable = [self._reach(tool, offered) for tool in tools]
    return next((command for command in reachable if command), '')

  def _light(self, offered: dict[str, None]) -> tuple[str, str]:
    """Turns on the lamp with the object in hand, once the lamp is found."""
    lamps = self.belief.places(self.asked.tool)
    for lamp, _ in lamps:
      if f'use {lamp}' in offered:
        return f'use {lamp}', f'use {lamp}'
    for lamp, place in lamps:
      if command := self._reach(place, offered):
        return f'use {lamp}', command
    return f'find {self.asked.tool}', self._search(self.asked.tool, offered)

  def _destination(self) -> str:
    """Chooses the receptacle for the goal's objects; '' for none."""
    belief, asked = self.belief, self.asked
    options = [
      name
      for name in belief.receptacles
      if class_of(name) == asked.target and (belief.holding, name) not in belief.refused
    ]
    present = {
      name: sum(
        class_of(item) == asked.object for item in belief.contents.get(name, ())
      )
      for name in options
    }
    wanted = asked.task_type == TWO
    return min(
      options,
      key=lambda name: (
        -present[name] if wanted else 0,
        name != belief.here,
        name in belief.closed,
        name,
      ),
      default='',
    )

  def _put(self, held: str, offered: dict[str, None]) -> str:
    place = self._destination()
    return self._put_into(held, place, offered) if place else ''

  def _put_into(self, held: str, place: str, offered: dict[str, None]) -> str:
    command = f'move {held} to {place}'
    if command in offered:
      return command
    return self._reach(place, offered) or self._look_into(place, offered)

  def _put_down(self, held: str, offered: dict[str, None]) -> str:
    """Gets rid of an unwanted object."""
    for command in offered:
      if command.startswith(f'move {held} to '):
        return command
    refused = self.belief.refused
    options = [name for name in self.belief.receptacles if (held, name) not in refused]
    return self._put_into(held, options[0], offered) if options else ''
