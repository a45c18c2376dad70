"""Rooms and household knowledge for generated games.

`household.json` states what exists: object classes with their abilities and likely
places, what each receptacle class can contain, and how rooms of each kind are
furnished. A room is drawn from it by (size, kind, side, number) alone.
"""

import dataclasses
import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

from sdar_jax import files

KINDS = ('kitchen', 'living', 'bedroom', 'bathroom')
SIZES = ('small', 'full')
_FILE = Path(__file__).with_name('household.json')
_RECEPTACLES = {'small': (6, 14), 'full': (10, 32)}
_UNSEEN_SHARE = 0.2  # Of all possible layouts, held out of training by their hash.
_SHARED_LOCATION = 0.25  # In full rooms, of neighbouring drawers, cabinets, shelves.


@dataclasses.dataclass(frozen=True)
class Household:
  """The tables of household.json.

  Attributes:
    abilities: object class -> subset of clean, heat, cool, slice, holds.
    places: (room kind, object class) -> {receptacle class: weight per receptacle};
      the likely places, of which a game draws most positions.
    contains: receptacle class -> object classes that it can contain.
    openable: receptacle classes that open, and are closed at first.
    furniture: (size, room kind) -> {class: (percent of rooms with it, least, most)}.
    digest: SHA-256 of the file.
  """

  abilities: Mapping[str, frozenset[str]]
  places: Mapping[tuple[str, str], Mapping[str, int]]
  contains: Mapping[str, frozenset[str]]
  openable: frozenset[str]
  furniture: Mapping[tuple[str, str], Mapping[str, tuple[int, int, int]]]
  digest: str

  def objects(self, kind: str) -> list[str]:
    """Lists the object classes at home in rooms of `kind`, sorted."""
    return sorted(name for room, name in self.places if room == kind)


def _load() -> Household:
  data = _FILE.read_bytes()
  table = files.parse_json(data, _FILE)
  objects = table['objects']
  return Household(
    abilities={name: frozenset(row['abilities']) for name, row in objects.items()},
    places={
      (kind, name): weights
      for name, row in objects.items()
      for kind, weights in row['places'].items()
    },
    contains={name: frozenset(row) for name, row in table['contains'].items()},
    openable=frozenset(table['openable']),
    furniture={
      (size, kind): {name: tuple(row) for name, row in rows.items()}
      for size, kinds in table['rooms'].items()
      for kind, rows in kinds.items()
    },
    digest=hashlib.sha256(data).hexdigest(),
  )


HOUSEHOLD = _load()


@dataclasses.dataclass(frozen=True)
class Receptacle:
  """One piece of furniture: its class, PDDL id and location.

  Attributes:
    kind: class name, e.g. 'SinkBasin'.
    ident: PDDL identifier.
    location: number of the place where the agent stands to use it; 0 is the middle.
  """

  kind: str
  ident: str
  location: int

  @property
  def openable(self) -> bool:
    """Whether it opens, and is closed at first."""
    return self.kind in HOUSEHOLD.openable


@dataclasses.dataclass(frozen=True)
class Room:
  """A furnished room without its objects."""

  kind: str
  receptacles: tuple[Receptacle, ...]

  def of(self, kind: str) -> list[Receptacle]:
    """Lists the receptacles of class `kind`."""
    return [item for item in self.receptacles if item.kind == kind]

  @property
  def classes(self) -> list[str]:
    """The receptacle classes in this room, sorted."""
    return sorted({item.kind for item in self.receptacles})

  @property
  def signature(self) -> str:
    """What makes two layouts the same: kind, furniture and shared locations."""
    items = [f'{item.ident}@{item.location}' for item in self.receptacles]
    return ' '.join([self.kind, *items])

  @property
  def unseen(self) -> bool:
    """Whether the layout is held out of training, by its hash."""
    counts = [f'{name} {len(self.of(name))}' for name in self.classes]
    digest = hashlib.sha256(' '.join([self.kind, *counts]).encode()).digest()
    return digest[0] < 256 * _UNSEEN_SHARE


def _ident(kind: str, number: int) -> str:
  """Writes a PDDL id in the official form; basins have one of their own."""
  if kind.endswith('Basin'):
    return f'{kind.removesuffix("Basin")}_bar_{number:02d}_bar_{kind}'
  return f'{kind}_bar_{number:02d}'


def _furnish(size: str, kind: str, rng: random.Random) -> Room:
  """Draws a room of this size and kind."""
  receptacles: list[Receptacle] = []
  location = 0
  for name, (percent, least, most) in sorted(HOUSEHOLD.furniture[size, kind].items()):
    if rng.random() * 100 >= percent:
      continue
    for number in range(1, rng.randint(least, most) + 1):
      may_share = (
        size == 'full' and number > 1 and name in ('Cabinet', 'Drawer', 'Shelf')
      )
      if not (may_share and rng.random() < _SHARED_LOCATION):
        location += 1
      receptacles.append(Receptacle(name, _ident(name, number), location))
  return Room(kind, tuple(receptacles))


def draw_room(size: str, kind: str, unseen: bool, number: int) -> Room:
  """Draws room `number` of this size and kind on one of two sides.

  Which side a room is on is decided by a hash of its furniture, so no layout of the
  unseen side can occur on the seen side, whatever the numbers.
  """
  rng = random.Random(f'room/{HOUSEHOLD.digest}/{size}/{kind}/{unseen}/{number}')
  least, most = _RECEPTACLES[size]
  while True:
    room = _furnish(size, kind, rng)
    if least <= len(room.receptacles) <= most and room.unseen == unseen:
      return room
