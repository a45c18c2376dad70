"""Generated ALFWorld games: seeded rooms, six kinds of task.

A game is a PDDL problem in the official games' format, so that the same engine (and
TextWorld) plays it. Everything about game `index` derives from (version, size, split,
index); games of valid_unseen take place in room layouts that training never sees.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

from sdar_jax.envs import base
from sdar_jax.envs.alfworld import instruction, rooms
from sdar_jax.envs.alfworld.engine import Game
from sdar_jax.envs.alfworld.instruction import (
  CLEAN,
  COOL,
  HEAT,
  LOOK,
  PICK,
  TWO,
  GameInstruction,
)

VERSION = 1
SPLITS = {'train': 100_000, 'valid_seen': 2_000, 'valid_unseen': 2_000}
# One task type per index modulo 20: about the official proportions, in every panel.
CYCLE = (
  *(PICK, CLEAN, COOL, TWO, PICK, LOOK, CLEAN, HEAT, COOL, PICK),
  *(TWO, PICK, CLEAN, COOL, HEAT, PICK, TWO, CLEAN, LOOK, COOL),
)
ROOMS_PER_KIND = {False: 400, True: 100}  # By side: seen, unseen.

_KINDS = {
  PICK: rooms.KINDS,
  LOOK: ('bedroom', 'bedroom', 'living'),
  CLEAN: ('kitchen', 'kitchen', 'kitchen', 'bathroom'),
  HEAT: ('kitchen',),
  COOL: ('kitchen',),
  TWO: rooms.KINDS,
}
_ABILITY = {CLEAN: 'clean', HEAT: 'heat', COOL: 'cool'}
_LAMP_PLACES = ('Desk', 'SideTable', 'Dresser', 'CoffeeTable')
_STRAY = 0.12  # Chance that an object lies at a possible but unlikely place.
_OBJECTS_PER_RECEPTACLE = {'small': 0.8, 'full': 1.1}
_CROWD = {'small': 4, 'full': 8}  # Most objects at one receptacle.
_PROPERTIES = {
  'clean': 'cleanable',
  'heat': 'heatable',
  'cool': 'coolable',
  'slice': 'sliceable',
  'holds': 'isReceptacleObject',
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """A game before it is written: a room and its objects' places.

  `objects` holds (object class, receptacle) pairs.
  """

  asked: GameInstruction
  room: rooms.Room
  objects: tuple[tuple[str, rooms.Receptacle], ...]
  wording: int


def _pick(rng: random.Random, weighted: Sequence[tuple[rooms.Receptacle, int]]):
  items, weights = zip(*weighted)
  return rng.choices(items, weights)[0]


def _place(
  rng: random.Random, room: rooms.Room, name: str, banned: set[rooms.Receptacle]
) -> rooms.Receptacle | None:
  """Draws a receptacle for one object, mostly a likely one, or None."""
  weights = rooms.HOUSEHOLD.places[room.kind, name]
  possible = [
    item
    for item in room.receptacles
    if item not in banned and name in rooms.HOUSEHOLD.contains[item.kind]
  ]
  likely = [(item, weights[item.kind]) for item in possible if item.kind in weights]
  stray = [(item, 1) for item in possible if item.kind not in weights]
  if stray and (not likely or rng.random() < _STRAY):
    return _pick(rng, stray)
  return _pick(rng, likely) if likely else None


def _instructions(room: rooms.Room, task_type: str) -> list[GameInstruction]:
  """Lists all sensible instructions of a type in a room."""
  house = rooms.HOUSEHOLD
  ability = _ABILITY.get(task_type)
  tool = instruction.tool_of(task_type)
  found = []
  for name in house.objects(room.kind):
    if ability and ability not in house.abilities[name]:
      continue
    likely = set(house.places[room.kind, name]) & set(room.classes)
    if task_type == LOOK:
      found += [GameInstruction(task_type, name, '', tool)] if likely else []
      continue
    for target in room.classes:
      fits = name in house.contains[target] and target != tool
      if fits and likely - {target}:
        found.append(GameInstruction(task_type, name, target, tool))
  return found


def _choose_instruction(
  rng: random.Random, room: rooms.Room, task_type: str
) -> GameInstruction | None:
  """Draws an object class and then its target: no class dominates."""
  if task_type == LOOK and not any(room.of(name) for name in _LAMP_PLACES):
    return None
  possible = _instructions(room, task_type)
  if not possible:
    return None
  name = rng.choice(sorted({asked.object for asked in possible}))
  return rng.choice([asked for asked in possible if asked.object == name])


def _fill(
  rng: random.Random, size: str, room: rooms.Room, asked: GameInstruction
) -> tuple[tuple[str, rooms.Receptacle], ...] | None:
  """Places the goal's objects, the lamp and others; None if it cannot."""
  crowd: dict[rooms.Receptacle, int] = {item: 0 for item in room.receptacles}
  placed: list[tuple[str, rooms.Receptacle]] = []

  def put(name: str, where: rooms.Receptacle) -> None:
    placed.append((name, where))
    crowd[where] += 1

  copies = rng.choice((2, 2, 3)) if asked.task_type == TWO else rng.choice((1, 1, 2))
  for _ in range(copies):
    where = _place(rng, room, asked.object, set(room.of(asked.target)))
    if where is None:
      return None
    put(asked.object, where)
  if asked.task_type == LOOK:
    tables = [item for name in _LAMP_PLACES for item in room.of(name)]
    put('DeskLamp', rng.choice(tables))
  others = [name for name in rooms.HOUSEHOLD.objects(room.kind) if name != asked.object]
  for _ in range(round(len(room.receptacles) * _OBJECTS_PER_RECEPTACLE[size])):
    name = rng.choice(others)
    full = {item for item, count in crowd.items() if count >= _CROWD[size]}
    where = _place(rng, room, name, full)
    if where is not None:
      put(name, where)
  return tuple(placed)


def layout(size: str, split: str, index: int) -> Layout:
  """Draws game `index` of a split, before it is written."""
  rng = random.Random(f'game/{VERSION}/{rooms.HOUSEHOLD.digest}/{size}/{split}/{index}')
  task_type = CYCLE[index % len(CYCLE)]
  unseen = split == 'valid_unseen'
  while True:
    kind = rng.choice(_KINDS[task_type])
    number = rng.randrange(ROOMS_PER_KIND[unseen])
    room = rooms.draw_room(size, kind, unseen, number)
    asked = _choose_instruction(rng, room, task_type)
    objects = _fill(rng, size, room, asked) if asked else None
    if objects is not None:
      return Layout(asked, room, objects, rng.randrange(2))


def _goal_pddl(asked: GameInstruction) -> str:
  """Writes the goal as PDDL."""
  here = '(inReceptacle ?o ?r)'
  kinds = f'(objectType ?o {asked.object}Type) (receptacleType ?r {asked.target}Type)'
  if asked.task_type == LOOK:
    return (
      '(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and '
      '(objectType ?ot DeskLampType) (toggleable ?ot) (isToggled ?ot) '
      '(receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) '
      '(exists (?o - object ?a - agent) (and '
      f'(objectType ?o {asked.object}Type) (holds ?a ?o))))'
    )
  if asked.task_type == TWO:
    second = f'{kinds} {here}'.replace('?o', '?o2')
    inner = f'(exists (?o2 - object) (and (not (= ?o ?o2)) {second}))'
    parts = f'{kinds} {here} {inner}'
  else:
    state = {
      CLEAN: '(cleanable ?o) (isClean ?o) ',
      HEAT: '(heatable ?o) (isHot ?o) ',
      COOL: '(coolable ?o) (isCool ?o) ',
      PICK: '',
    }[asked.task_type]
    parts = f'{state}{kinds} {here}'
  return f'(and (exists (?r - receptacle) (exists (?o - object) (and {parts}))))'


def _facts(game: Layout, idents: Sequence[str]) -> list[str]:
  """Lists the initial state as PDDL facts."""
  house = rooms.HOUSEHOLD
  facts = ['(atLocation agent1 loc_bar_0)']
  for item in game.room.receptacles:
    facts.append(f'(receptacleType {item.ident} {item.kind}Type)')
    facts.append(f'(receptacleAtLocation {item.ident} loc_bar_{item.location})')
    if item.openable:
      facts.append(f'(openable {item.ident})')
  for (name, where), ident in zip(game.objects, idents, strict=True):
    facts.append(f'(objectType {ident} {name}Type)')
    facts.append(f'(inReceptacle {ident} {where.ident})')
    facts.append(f'(objectAtLocation {ident} loc_bar_{where.location})')
    if name == 'DeskLamp':
      facts.append(f'(toggleable {ident})')
      continue
    facts.append(f'(pickupable {ident})')
    for ability in sorted(house.abilities[name]):
      facts.append(f'({_PROPERTIES[ability]} {ident})')
  present = sorted({name for name, _ in game.objects})
  for kind in game.room.classes:
    for name in present:
      if name in house.contains[kind]:
        facts.append(f'(canContain {kind}Type {name}Type)')
  return facts


def pddl(game: Layout, name: str) -> str:
  """Writes the game as a PDDL problem in the official games' format."""
  counts: dict[str, int] = {}
  idents = []
  for kind, _ in game.objects:
    counts[kind] = counts.get(kind, 0) + 1
    idents.append(f'{kind}_bar_{counts[kind]:02d}')
  locations = {0, *(item.location for item in game.room.receptacles)}
  objects = ['agent1 - agent']
  objects += [f'{kind}Type - otype' for kind in sorted(counts)]
  objects += [f'{kind}Type - rtype' for kind in game.room.classes]
  objects += [f'{ident} - object' for ident in idents]
  objects += [f'{item.ident} - receptacle' for item in game.room.receptacles]
  objects += [f'loc_bar_{number} - location' for number in sorted(locations)]
  return '\n'.join(
    [
      f'(define (problem {name})',
      '(:domain alfred)',
      '(:objects',
      *objects,
      ')',
      '(:init',
      *_facts(game, idents),
      ')',
      f'(:goal {_goal_pddl(game.asked)})',
      ')',
    ]
  )


class GeneratedGames(base.Tasks):
  """The generated games of one split: lazy, deterministic, cheap to index.

  Args:
    split: 'train', 'valid_seen' or 'valid_unseen'.
    size: 'small' (6 to 14 receptacles) or 'full' (like the official rooms).
    train_tasks: length of the training split; game i is the same for any length.
  """

  def __init__(
    self, split: str, size: str = 'small', train_tasks: int = SPLITS['train']
  ):
    base.check_split(split, SPLITS)
    base.check_choice('size', size, rooms.SIZES)
    if train_tasks < 1:
      raise ValueError(f'config.world.train_tasks={train_tasks}: must be at least 1')
    length = train_tasks if split == 'train' else SPLITS[split]
    truth = ['generated', VERSION, rooms.HOUSEHOLD.digest, size, split, length]
    super().__init__(split, length, functools.partial(make_task, size, split), truth)

  @property
  def task_types(self) -> list[str]:
    """The type of each game, without making it."""
    return [CYCLE[index % len(CYCLE)] for index in range(len(self))]


def make_task(size: str, split: str, index: int) -> base.Task:
  """Makes game `index` of a split."""
  game = layout(size, split, index)
  goal = instruction.write(game.asked, game.wording)
  problem = pddl(game, f'{size}_{split}_{index:06d}')
  return base.Task(
    task_id=f'generated/{split}/{index:06d}',
    task_type=game.asked.task_type,
    goal=goal,
    metadata=game.asked.metadata,
    payload=Game(pddl_problem=problem, goal=goal),
  )
