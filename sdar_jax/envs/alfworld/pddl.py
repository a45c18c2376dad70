"""PDDL problems of the ALFWorld domain, parsed once and shareable."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping

from sdar_jax.envs.alfworld import pddl_goal as goals

KNIVES = frozenset({'knifetype', 'butterknifetype'})
_ARITY = {
  'atlocation': 2,
  'cancontain': 2,
  'holds': 2,
  'inreceptacle': 2,
  'inreceptacleobject': 2,
  'objectatlocation': 2,
  'objecttype': 2,
  'receptacleatlocation': 2,
  'receptacletype': 2,
}
_MAX_DEPTH = 50  # Of a goal's parentheses; official goals need 6.
MAX_OBJECTS = 5_000  # Declared in a problem; official ones have up to 360.
MAX_FACTS = 50_000  # That hold at the start; official problems state up to 613.


class ProblemError(ValueError):
  """An unplayable PDDL problem; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Problem:
  """One room, its initial state and its goal, in lower-case PDDL ids.

  Attributes:
    agent: the agent's id.
    start: the location the agent starts at.
    holding: the object it starts with, or None.
    names: id -> the name that is shown ('mug 2'; 'loc 7' for locations).
    kinds: id of an object or receptacle -> its type ('mugtype'), where stated.
    locations: id of a receptacle -> the location it is reached from.
    receptacles: those with a location, sorted by id.
    receptacles_at: location -> receptacles there, sorted by id.
    contents: receptacle -> objects in it at the start.
    object_locations: (object, location) pairs at the start.
    flags: 'isclean', 'opened', ... -> ids that start with it.
    properties: 'openable', 'pickupable', 'heatable', ... -> ids that have it.
    can_contain: (receptacle type, object type) pairs that `move` allows.
    inner: object -> objects inside it (bowls and the like), sorted by id.
    destinations: 'go to desk 1' -> receptacle.
    goal: grounded goal, see `goal.py`.
  """

  agent: str
  start: str
  holding: str | None
  names: Mapping[str, str]
  kinds: Mapping[str, str]
  locations: Mapping[str, str]
  receptacles: tuple[str, ...]
  receptacles_at: Mapping[str, tuple[str, ...]]
  contents: Mapping[str, frozenset[str]]
  object_locations: frozenset[tuple[str, str]]
  flags: Mapping[str, frozenset[str]]
  properties: Mapping[str, frozenset[str]]
  can_contain: frozenset[tuple[str, str]]
  inner: Mapping[str, tuple[str, ...]]
  destinations: Mapping[str, str]
  goal: goals.Node


def parse_problem(text: str) -> Problem:
  """Parses the PDDL problem of an ALFWorld game.

  Args:
    text: the whole `(define (problem ...) ...)`.

  Returns:
    The problem; it shares nothing mutable and pickles.

  Raises:
    ProblemError: one line that says what is missing or cannot be read.
  """
  sections = _sections(text)
  types = _object_types(sections['objects'])
  if len(types) > MAX_OBJECTS:
    raise ProblemError(f'PDDL problem: {len(types)} objects, more than {MAX_OBJECTS}')
  facts = _facts(sections['init'], types)
  by_predicate = defaultdict(list)
  for fact in facts:
    by_predicate[fact[0]].append(fact[1:])
  ids = sorted({name for fact in facts for name in fact[1:]})
  try:
    return _assemble(types, facts, by_predicate, _shown_names(ids), sections['goal'])
  except RecursionError:
    raise ProblemError('PDDL problem: the goal is nested too deeply') from None
  except ValueError as error:
    raise ProblemError(f'PDDL problem: {error}') from None


def _sections(text: str) -> dict[str, str]:
  """Cuts out the bodies of :objects, :init and :goal, lower-cased."""
  text = re.sub(r';[^\n]*', '', text) if ';' in text else text
  text = text.lower()
  starts = {key: text.find(f'(:{key}') for key in ('objects', 'init', 'goal')}
  for key, start in starts.items():
    if start < 0:
      raise ProblemError(f'PDDL problem: there is no (:{key} ...) section')
  sections = {}
  for key, start in starts.items():
    end = min((s for s in starts.values() if s > start), default=len(text))
    sections[key] = text[start + len(key) + 2 : end]
  return sections


def _object_types(section: str) -> dict[str, str]:
  """Reads :objects as id -> PDDL type."""
  words = section.rpartition(')')[0].split()
  try:
    return dict(goals.typed_names(words))
  except ValueError as error:
    raise ProblemError(f'PDDL problem: (:objects): {error}') from None


def _facts(section: str, types: Mapping[str, str]) -> frozenset[goals.Atom]:
  """Reads :init; numeric assignments (distances, total-cost) are left out."""
  if re.search(r'\(\s*not\b', section):
    raise ProblemError(
      'PDDL problem: (:init) holds a (not ...); it may only list facts'
    )
  facts = set()
  for inside in re.findall(r'\(([^()]*)\)', section):
    words = tuple(inside.split())
    if not words or words[0] in ('total-cost', 'distance'):
      continue
    facts.add(words)
  if len(facts) > MAX_FACTS:
    raise ProblemError(f'PDDL problem: {len(facts)} facts, more than {MAX_FACTS}')
  for fact in facts:
    if len(fact) - 1 != _ARITY.get(fact[0], 1):
      raise ProblemError(f'PDDL problem: ({" ".join(fact)[:80]}) has a wrong length')
    for name in fact[1:]:
      if name not in types:
        raise ProblemError(
          f'PDDL problem: {name[:80]} is used in :init but not declared in :objects'
        )
  return frozenset(facts)


def _shown_names(ids: list[str]) -> dict[str, str]:
  """Numbers the ids of each class, from the highest number down."""
  classes = {}
  for name in ids:
    head, bar, _ = name.partition('_bar_')
    if bar:
      classes[name] = head + 'basin' if 'basin' in name else head
  left = defaultdict(int)
  for kind in classes.values():
    left[kind] += 1
  names = {}
  for name in ids:
    kind = classes.get(name)
    if kind is None:
      names[name] = f'{name} '
    else:
      names[name] = f'{kind} {left[kind]}'
      left[kind] -= 1
  return names


def _unique(pairs: list[tuple[str, str]], what: str) -> dict[str, str]:
  """Makes a dict of pairs; refuses two values for one key."""
  result = dict(pairs)
  if len(result) < len(pairs):
    seen = set()
    twice = next(key for key, _ in sorted(pairs) if key in seen or seen.add(key))
    raise ValueError(f'{twice[:80]} has more than one {what}')
  return result


def _single(values: list, what: str):
  """Gives the only element of a list."""
  if len(values) != 1:
    raise ValueError(f'there must be exactly one {what}, found {len(values)}')
  return values[0]


def _assemble(types, facts, by_predicate, names, goal_text) -> Problem:
  """Puts the parts together."""
  objects = defaultdict(list)
  for name, kind in types.items():
    objects[kind].append(name)
  agent, start = _single(by_predicate['atlocation'], 'agent at a location')
  if types[agent] != 'agent':
    raise ValueError(f'{agent[:80]} is at a location but is not of type agent')
  held = [name for _, name in by_predicate['holds']]
  locations = _unique(by_predicate['receptacleatlocation'], 'location')
  receptacles = tuple(sorted(locations))
  receptacles_at, contents, inner = (defaultdict(list) for _ in range(3))
  for receptacle in receptacles:
    receptacles_at[locations[receptacle]].append(receptacle)
  for name, receptacle in by_predicate['inreceptacle']:
    contents[receptacle].append(name)
  for name, outer in by_predicate['inreceptacleobject']:
    inner[outer].append(name)
  kinds = _unique(by_predicate['objecttype'] + by_predicate['receptacletype'], 'type')
  properties = {
    key: frozenset(args[0] for args in by_predicate[key])
    for key in (
      *('openable', 'pickupable', 'cleanable', 'heatable', 'coolable', 'toggleable'),
      *('sliceable', 'isreceptacleobject'),
    )
  }
  pickupable = properties['pickupable']

  def rigid(atom: goals.Atom) -> bool:
    if atom[0] == 'inreceptacle':
      return atom[1] not in pickupable or types[atom[2]] != 'receptacle'
    return atom[0] not in goals.CHANGEABLE

  flags = {key: frozenset(args[0] for args in by_predicate[key]) for key in goals.FLAGS}
  return Problem(
    agent=agent,
    start=start,
    holding=_single(held, 'object held') if held else None,
    names=names,
    kinds=kinds,
    locations=locations,
    receptacles=receptacles,
    receptacles_at={key: tuple(value) for key, value in receptacles_at.items()},
    contents={name: frozenset(contents[name]) for name in objects['receptacle']},
    object_locations=frozenset(by_predicate['objectatlocation']),
    flags=flags,
    properties=properties,
    can_contain=frozenset(by_predicate['cancontain']),
    inner={key: tuple(sorted(value)) for key, value in inner.items()},
    destinations={f'go to {names[name]}': name for name in receptacles},
    goal=goals.Grounder(objects, facts, rigid).ground(_formula(goal_text)),
  )


def _formula(section: str) -> list:
  """Reads the goal as nested lists of words."""
  words = section.replace('(', ' ( ').replace(')', ' ) ').split()
  stack: list[list] = [[]]
  for word in words:
    if word == '(':
      stack.append([])
      if len(stack) > _MAX_DEPTH:
        raise ValueError(f'the goal is nested more than {_MAX_DEPTH} deep')
    elif word == ')':
      if len(stack) == 1:
        break
      done = stack.pop()
      stack[-1].append(done)
    else:
      stack[-1].append(word)
    if len(stack) == 1 and stack[0]:
      break
  if len(stack) != 1:
    raise ValueError('the goal has an unclosed parenthesis')
  return _single(stack[0], 'formula in the goal')
