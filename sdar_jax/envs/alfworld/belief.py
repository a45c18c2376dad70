"""An agent's knowledge from the texts it has read. Nothing hidden.

The scripted expert acts on a `RoomBelief`, and the compact prompt is a view of one.
"""

import dataclasses
import re
from collections.abc import Sequence

from sdar_jax.envs.alfworld.engine import NOTHING_HAPPENS
from sdar_jax.envs.base import Exchange, Observation

_NAME = r'([a-z]+ \d+)'
_ENTITY = re.compile(_NAME)
_INTRO = re.compile(r'Looking quickly around you, you see (.*)')
_ARRIVE = re.compile(rf'You arrive at {_NAME}\.')
_CLOSED = re.compile(rf'The {_NAME} is closed\.')
_CONTENT = re.compile(rf'(?:On the|The) {_NAME}(?: is open\. In it)?, you see (.*)')
_TAKE = re.compile(rf'You pick up the {_NAME} from the {_NAME}\.')
_MOVE = re.compile(rf'You move the {_NAME} to the {_NAME}\.')
_CLOSE = re.compile(rf'You close the {_NAME}\.')
_CHANGE = re.compile(rf'You (clean|heat|cool) the {_NAME} using')
_USE = re.compile(rf'You turn on the {_NAME}\.')
_CARRY = re.compile(rf'You are carrying: a {_NAME}')
# Receptacle class -> the verb for what it does to an object, and the result.
TREATMENTS = {
  'sinkbasin': ('clean', 'clean'),
  'microwave': ('heat', 'hot'),
  'fridge': ('cool', 'cool'),
}
_RESULTS = dict(TREATMENTS.values())


def class_of(name: str) -> str:
  """Strips the number of a name: 'cabinet 3' -> 'cabinet'."""
  return name.rpartition(' ')[0]


@dataclasses.dataclass
class RoomBelief:
  """What has been observed so far in one episode.

  Attributes:
    receptacles: names in the order of the first observation.
    contents: receptacle -> objects last seen there; absent while never looked into.
    closed: receptacles last seen closed.
    visits: receptacle -> how often the agent went there.
    here: where the agent stands; empty in the middle of the room.
    holding: the object in hand; empty for none.
    states: object -> subset of {'clean', 'hot', 'cool'}, as changed by the agent.
    lit: lamps that the agent turned on.
    refused: (object, receptacle) pairs that could not be taken or put there.
    inert: (object, receptacle class) pairs: held there, but no treatment was offered.
    failed: the last action did nothing.
  """

  receptacles: list[str] = dataclasses.field(default_factory=list)
  contents: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  closed: set[str] = dataclasses.field(default_factory=set)
  visits: dict[str, int] = dataclasses.field(default_factory=dict)
  here: str = ''
  holding: str = ''
  states: dict[str, set[str]] = dataclasses.field(default_factory=dict)
  lit: set[str] = dataclasses.field(default_factory=set)
  refused: set[tuple[str, str]] = dataclasses.field(default_factory=set)
  inert: set[tuple[str, str]] = dataclasses.field(default_factory=set)
  failed: bool = False

  @property
  def unsearched(self) -> list[str]:
    """Receptacles with contents never seen."""
    return [name for name in self.receptacles if name not in self.contents]

  def places(self, kind: str) -> list[tuple[str, str]]:
    """Lists known (object, receptacle) pairs of an object class."""
    return [
      (item, name)
      for name in self.receptacles
      for item in self.contents.get(name, ())
      if class_of(item) == kind
    ]

  def read(self, text: str) -> None:
    """Takes in one observation text."""
    self.failed = text.strip() == NOTHING_HAPPENS
    if self.failed:
      return
    if found := _INTRO.search(text):
      self._introduce(_ENTITY.findall(found.group(1)))
      return
    if found := _ARRIVE.search(text):
      self.here = found.group(1)
      self.visits[self.here] = self.visits.get(self.here, 0) + 1
    if found := _CLOSED.search(text):
      self.closed.add(found.group(1))
    if (found := _CONTENT.search(text)) and found.group(1) in self.receptacles:
      self.closed.discard(found.group(1))
      self.contents[found.group(1)] = _ENTITY.findall(found.group(2))
    self._read_deed(text)

  def _introduce(self, names: list[str]) -> None:
    if names and not self.receptacles:
      self.receptacles = names

  def _read_deed(self, text: str) -> None:
    """Takes in the outcome of handling an object."""
    if found := _TAKE.search(text):
      item, place = found.groups()
      self.holding = item
      if item in self.contents.get(place, ()):
        self.contents[place].remove(item)
    elif found := _MOVE.search(text):
      item, place = found.groups()
      self.holding = ''
      if place in self.contents:
        self.contents[place].append(item)
    elif found := _CLOSE.search(text):
      self.closed.add(found.group(1))
    elif found := _CHANGE.search(text):
      states = self.states.setdefault(found.group(2), set())
      states.add(_RESULTS[found.group(1)])
      if found.group(1) != 'clean':
        states.discard('cool' if found.group(1) == 'heat' else 'hot')
    elif found := _USE.search(text):
      self.lit.add(found.group(1))
    elif found := _CARRY.search(text):
      self.holding = found.group(1)

  def note_refusals(self, admissible: Sequence[str]) -> None:
    """Remembers refused takes, puts and treatments at this place."""
    offered = set(admissible)
    if self.holding and class_of(self.here) in TREATMENTS:
      verb, _ = TREATMENTS[class_of(self.here)]
      if f'{verb} {self.holding} with {self.here}' not in offered:
        self.inert.add((self.holding, class_of(self.here)))
    if not self.here or self.here in self.closed or self.here not in self.contents:
      return
    if self.holding:
      if f'move {self.holding} to {self.here}' not in offered:
        self.refused.add((self.holding, self.here))
      return
    for item in self.contents[self.here]:
      if f'take {item} from {self.here}' not in offered:
        self.refused.add((item, self.here))


def believe(history: Sequence[Exchange], observation: Observation) -> RoomBelief:
  """Builds the belief of an agent after a whole history."""
  belief = RoomBelief()
  for exchange in history:
    belief.read(exchange.observation)
  belief.read(observation.text)
  return belief
