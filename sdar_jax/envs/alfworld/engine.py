"""The ALFWorld engine: TextWorld's texts and rewards in plain Python.

Facts of the original that look odd are kept on purpose: the text and the list of
admissible commands must be the original's byte for byte.
"""

import dataclasses
import functools

from sdar_jax.envs import base
from sdar_jax.envs.alfworld import pddl_goal as goals
from sdar_jax.envs.alfworld.pddl import KNIVES, Problem, ProblemError, parse_problem

NOTHING_HAPPENS = 'Nothing happens.'
GRAMMARS = ('new', 'old')
_HELP = (
  ('look', 'look around your current location'),
  ('inventory', 'check your current inventory'),
  ('go to (receptacle)', 'move to a receptacle'),
  ('open (receptacle)', 'open a receptacle'),
  ('close (receptacle)', 'close a receptacle'),
  ('take (object) from (receptacle)', 'take an object from a receptacle'),
  ('move (object) to (receptacle)', 'place an object in or on a receptacle'),
  ('examine (something)', 'examine a receptacle or an object'),
  ('use (object)', 'use an object'),
  ('heat (object) with (receptacle)', 'heat an object using a receptacle'),
  ('clean (object) with (receptacle)', 'clean an object using a receptacle'),
  ('cool (object) with (receptacle)', 'cool an object using a receptacle'),
  ('slice (object) with (object)', 'slice an object using a sharp object'),
)
# verb -> (property the object needs, type of the receptacle, flag set, flag cleared)
_TREATMENTS = {
  'clean': ('cleanable', 'sinkbasintype', 'isclean', None),
  'heat': ('heatable', 'microwavetype', 'ishot', 'iscool'),
  'cool': ('coolable', 'fridgetype', 'iscool', 'ishot'),
}


@dataclasses.dataclass(frozen=True)
class Game:
  """What a task needs to start: the payload of an ALFWorld `Task`.

  Attributes:
    pddl_problem: the PDDL text, or the problem already parsed (share it in a group).
    goal: the instruction as the intro states it.
    grammar: 'new' (alfworld >= 0.4: "move X to Y") or 'old' ("put X in/on Y").
    source: where the problem came from; named if it cannot be read.
  """

  pddl_problem: str | Problem = dataclasses.field(repr=False)
  goal: str
  grammar: str = 'new'
  source: str = 'game'

  def __post_init__(self):
    if self.grammar not in GRAMMARS:
      raise ValueError(f'grammar {self.grammar!r} must be one of {GRAMMARS}')

  @functools.cached_property
  def problem(self) -> Problem:
    """The parsed problem, kept as long as this object lives."""
    if isinstance(self.pddl_problem, Problem):
      return self.pddl_problem
    try:
      return parse_problem(self.pddl_problem)
    except ProblemError as error:
      raise ProblemError(f'{self.source}: {error}') from None

  def __getstate__(self):
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclasses.dataclass
class State:
  """The true state of a room.

  Attributes:
    location: where the agent is.
    holding: the object in its hand, or None.
    contents: receptacle -> ids of the objects in it.
    object_locations: (object, location) pairs, as PDDL keeps them.
    removed: (object, receptacle) pairs taken apart and not put together again.
    flags: 'isclean', 'ishot', 'iscool', 'issliced', 'istoggled', 'ison', 'opened' ->
      ids that have the flag.
  """

  location: str
  holding: str | None
  contents: dict[str, set[str]]
  object_locations: set[tuple[str, str]]
  removed: set[tuple[str, str]]
  flags: dict[str, set[str]]

  @classmethod
  def initial(cls, problem: Problem) -> 'State':
    """Makes the initial state of a problem."""
    return cls(
      location=problem.start,
      holding=problem.holding,
      contents={key: set(value) for key, value in problem.contents.items()},
      object_locations=set(problem.object_locations),
      removed=set(),
      flags={key: set(value) for key, value in problem.flags.items()},
    )

  def holds(self, atom: goals.Atom) -> bool:
    """Tests a changeable PDDL atom, e.g. ('isclean', id)."""
    predicate = atom[0]
    if predicate == 'inreceptacle':
      return atom[1] in self.contents[atom[2]]
    if predicate == 'holds':
      return self.holding == atom[2]
    if predicate == 'holdsany':
      return self.holding is not None
    if predicate == 'atlocation':
      return self.location == atom[2]
    if predicate == 'objectatlocation':
      return atom[1:] in self.object_locations
    return atom[1] in self.flags[predicate]


class AlfworldEnv:
  """Plays ALFWorld games; implements `envs.base.TextEnv`.

  After `reset`, `problem` is the immutable problem, `state` the true state and
  `commands` maps each admissible command to its (verb, id, ...). Everything lives in
  the object: environments may be interleaved, copied and pickled in mid-episode.
  """

  problem: Problem
  state: State
  commands: dict[str, tuple[str, ...]]

  def __init__(self):
    self._old = False

  def reset(self, task: base.Task) -> base.Observation:
    """Starts the game in `task.payload` (a `Game`)."""
    game = task.payload
    self.problem = game.problem
    self.state = State.initial(self.problem)
    self._old = game.grammar == 'old'
    look = (
      self._look()
      if self.problem.receptacles_at.get(self.state.location)
      else (
        'You are in the middle of a room. Looking quickly around you, you see '
        f'{self._listing(self.problem.receptacles)}.'
      )
    )
    text = (
      f'-= Welcome to TextWorld, ALFRED! =-\n\n{look}\n\nYour task is to: {game.goal}'
    )
    return base.Observation(text, self._refresh())

  def step(self, action: str) -> base.StepResult:
    """Plays one command; any other text does nothing."""
    command = self.commands.get(action.strip())
    text = NOTHING_HAPPENS if command is None else self._apply(*command)
    admissible = self._refresh()
    won = self.won
    return base.StepResult(
      base.Observation(text, admissible), float(won), done=won, success=won
    )

  @property
  def won(self) -> bool:
    """Whether the goal holds now."""
    return goals.satisfied(self.problem.goal, self.state.holds)

  def _listing(self, ids) -> str:
    """Enumerates names: 'a mug 1, and a pen 2', in the order given."""
    names = self.problem.names
    words = [f'a {names[name]}' for name in ids]
    if len(words) > 1:
      words[-1] = f'and {words[-1]}'
    return ', '.join(words) or 'nothing'

  def _refresh(self) -> tuple[str, ...]:
    """Recomputes the admissible commands and returns them sorted."""
    problem, state = self.problem, self.state
    names, locations = problem.names, problem.locations
    commands = {
      text: ('go', name)
      for text, name in problem.destinations.items()
      if locations[name] != state.location
    }
    commands['look'] = ('look',)
    commands['inventory'] = ('inventory',)
    if not self._old:
      commands['help'] = ('help',)
    if state.holding is not None:
      commands[f'examine {names[state.holding]}'] = ('examine', state.holding)
      self._offer_slicing(commands)
    for receptacle in problem.receptacles_at.get(state.location, ()):
      self._offer_receptacle(commands, receptacle)
    self.commands = commands
    return tuple(sorted(commands))

  def _offer_receptacle(self, commands: dict, receptacle: str) -> None:
    """Adds the commands for one receptacle within reach."""
    problem, state = self.problem, self.state
    names, shown = problem.names, problem.names[receptacle]
    commands[f'examine {shown}'] = ('inspect', receptacle)
    contents = state.contents[receptacle]
    for name in contents & problem.properties['toggleable']:
      commands[f'use {names[name]}'] = ('use', name)
    accessible = True
    if receptacle in problem.properties['openable']:
      accessible = receptacle in state.flags['opened']
      verb = 'close' if accessible else 'open'
      commands[f'{verb} {shown}'] = (verb, receptacle)
    held = state.holding
    if held is None:
      if accessible:
        for name in contents & problem.properties['pickupable']:
          commands[f'take {names[name]} from {shown}'] = ('take', name, receptacle)
      return
    kind = problem.kinds.get(receptacle)
    if accessible and (kind, problem.kinds.get(held)) in problem.can_contain:
      text = (
        f'put {names[held]} in/on {shown}'
        if self._old
        else (f'move {names[held]} to {shown}')
      )
      commands[text] = ('move', held, receptacle)
    for verb, (able, place, _, _) in _TREATMENTS.items():
      if kind == place and held in problem.properties[able]:
        commands[f'{verb} {names[held]} with {shown}'] = (verb, held, receptacle)

  def _offer_slicing(self, commands: dict) -> None:
    """Adds the cuts of the held knife: closed doors do not matter."""
    problem, held = self.problem, self.state.holding
    if problem.kinds.get(held) not in KNIVES:
      return
    for name, location in self.state.object_locations:
      if location == self.state.location and name in problem.properties['sliceable']:
        text = f'slice {problem.names[name]} with {problem.names[held]}'
        commands[text] = ('slice', name, held)

  def _apply(self, verb: str, *ids: str) -> str:
    """Changes the state by an admissible command and tells the outcome."""
    names, state = self.problem.names, self.state
    if verb == 'go':
      state.location = self.problem.locations[ids[0]]
      place = names[state.location] if self._old else names[ids[0]]
      return f'You arrive at {place}. {self._view(ids[0])}'
    if verb == 'open':
      state.flags['opened'].add(ids[0])
      return f'You open the {names[ids[0]]}. {self._view(ids[0])}'
    if verb == 'close':
      state.flags['opened'].discard(ids[0])
      return f'You close the {names[ids[0]]}.'
    if verb == 'take':
      return self._take(*ids)
    if verb == 'move':
      return self._move(*ids)
    if verb in _TREATMENTS:
      _, _, gained, lost = _TREATMENTS[verb]
      state.flags[gained].add(ids[0])
      if lost:
        state.flags[lost].discard(ids[0])
      return f'You {verb} the {names[ids[0]]} using the {names[ids[1]]}.'
    if verb == 'slice':
      state.flags['issliced'].add(ids[0])
      return f'You sliced the {names[ids[0]]} with the {names[ids[1]]}.'
    if verb == 'use':
      state.flags['ison'] ^= {ids[0]}
      state.flags['istoggled'].add(ids[0])
      return f'You turn on the {names[ids[0]]}.'
    return self._describe(verb, *ids)

  def _take(self, name: str, receptacle: str) -> str:
    """Moves an object into the hand."""
    state = self.state
    state.contents[receptacle].discard(name)
    state.object_locations.discard((name, state.location))
    state.removed.add((name, receptacle))
    state.holding = name
    names = self.problem.names
    return f'You pick up the {names[name]} from the {names[receptacle]}.'

  def _move(self, name: str, receptacle: str) -> str:
    """Moves the held object into or onto a receptacle."""
    state = self.state
    state.contents[receptacle].add(name)
    state.object_locations.add((name, state.location))
    state.removed.discard((name, receptacle))
    state.holding = None
    first, second = self.problem.names[name], self.problem.names[receptacle]
    if self._old:
      return f'You put the {first} in/on the {second}.'
    return f'You move the {first} to the {second}.'

  def _describe(self, verb: str, *ids: str) -> str:
    """Answers the commands without effect."""
    if verb == 'look':
      return self._look()
    if verb == 'inspect':
      return self._view(ids[0])
    if verb == 'examine':
      return self._examine(ids[0])
    if verb == 'inventory':
      held = self.state.holding
      if held is None:
        return 'You are not carrying anything.'
      return f'You are carrying: {self._listing([held])}.'
    # The line of `move` is two columns short in the original.
    lines = [
      f'  {usage + ":":{32 if usage.startswith("move") else 34}s}{what}\n'
      for usage, what in _HELP
    ]
    return 'Available commands:\n' + ''.join(lines)

  def _view(self, receptacle: str) -> str:
    """Describes a receptacle: its contents unless it is closed."""
    shown = self.problem.names[receptacle]
    seen = self._listing(sorted(self.state.contents[receptacle]))
    if receptacle not in self.problem.properties['openable']:
      return f'On the {shown}, you see {seen}.'
    if receptacle in self.state.flags['opened']:
      return f'The {shown} is open. In it, you see {seen}.'
    return f'The {shown} is closed.'

  def _examine(self, name: str) -> str:
    """Describes an object in the hand."""
    problem, flags = self.problem, self.state.flags
    shown = problem.names[name]
    if name in problem.properties['isreceptacleobject']:
      inner = self._listing(problem.inner.get(name, ()))
      return f'This is a normal {shown}. In it, you see {inner}.'
    sliced = name in flags['issliced']
    hot, cool = name in flags['ishot'], name in flags['iscool']
    words = ['hot'] if hot else ['cool'] if cool else []
    if name in flags['isclean']:
      words.append('clean')
    if words == ['cool'] and not sliced:
      words = ['cold']
    if words:
      return f'This is a {" and ".join(words)}{" sliced" * sliced} {shown}.'
    if name in problem.properties['toggleable'] and name in flags['istoggled']:
      return f'This {shown} is on.'
    if sliced:
      return f'This is a sliced {shown}.'
    return f"There's nothing special about {shown}."

  def _look(self) -> str:
    """Answers `look`: the receptacles here, and objects moved from them."""
    problem, state = self.problem, self.state
    here = problem.receptacles_at.get(state.location, ())
    if not here:
      # The original binds the location before it lists the room: nothing is left.
      return (
        'You are in the middle of a room. Looking quickly around you, you see nothing.'
      )
    facing = [problem.names[name] for name in here]
    if len(facing) > 1:
      facing[-1] = f'and {facing[-1]}'
    displaced = [
      name
      for name, receptacle in sorted(state.removed)
      if receptacle in here and (name, state.location) in state.object_locations
    ]
    return (
      f'You are facing the {", ".join(facing)}. '
      f'Next to it, you see {self._listing(displaced)}.'
    )
