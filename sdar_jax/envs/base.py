"""Types and the base class of every world. No global state.

A world is one folder: an engine (`TextEnv`), tasks, a prompt and a parser, behind one
subclass of `World`.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from sdar_jax.envs import action_parser
from sdar_jax.envs.action_parser import ParsedAction
from sdar_jax.envs.history import (
  Exchange,
  History,
  actions_since,
  past_turns,
  whole,
)

INSTRUCTION = (
  'First think, between <think> and </think>. Then give one action, between <action> '
  'and </action>.'
)


class EnvironmentFault(RuntimeError):
  """A failure of infrastructure, not of the policy: never trained on.

  Attributes:
    kind: what failed, one short word for counting, e.g. 'refused' or 'crash'.
  """

  def __init__(self, kind: str, message: str):
    super().__init__(f'{kind}: {message}')
    self.kind = kind
    self.message = message

  def __reduce__(self) -> Any:  # The default calls the class with one argument.
    return type(self), (self.kind, self.message)


class EnvironmentTimeout(EnvironmentFault):
  """A missed deadline."""


class SplitError(ValueError):
  """A split that a world does not have; `why` is what its name must be."""

  def __init__(self, split: str, why: str):
    super().__init__(split, why)
    self.split, self.why = split, why

  def __str__(self) -> str:
    return f'split {self.split!r}: {self.why}'


@dataclasses.dataclass(frozen=True)
class Task:
  """A thing to solve; its episodes' randomness derives from `task_id`.

  Attributes:
    task_id: unique and stable across machines, e.g. 'generated/train/000017'.
    task_type: the category that reports are broken down by.
    goal: the instruction in words.
    metadata: what skill retrieval may look at (never the hidden state).
    payload: what the world's engine needs to start; opaque to everyone else.
  """

  task_id: str
  task_type: str
  goal: str
  metadata: Mapping[str, str]
  payload: Any = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Observation:
  """An agent's view: the text, and the actions with an effect."""

  text: str
  admissible: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StepResult:
  """One environment step.

  Attributes:
    observation: what the agent sees next.
    reward: what the world pays for this action.
    done: the episode is over.
    success: it is over and the task is solved.
    score: what the episode would score in [0, 1] if it ended here, in worlds that grade
      (WebShop's task score: 0 until something is bought); None where success says all.
  """

  observation: Observation
  reward: float
  done: bool
  success: bool
  score: float | None = None


def digest_of(value: Any) -> str:
  """Hashes a value's JSON: hex SHA-256."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def setting(
  default: Any,
  *,
  least: int | None = None,
  most: int | None = None,
  choices: Sequence[str] = (),
) -> Any:
  """Declares a setting of a world: its default, and its bounds or choices."""
  limits = {'least': least, 'most': most, 'choices': tuple(choices)}
  return dataclasses.field(default=default, metadata=limits)


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
  """Raises ValueError unless a world's setting is one of `choices`."""
  if value not in choices:
    raise ValueError(f'config.world.{key}={value!r}: must be one of {tuple(choices)}')


class TextEnv(Protocol):
  """One environment: a picklable object, its state its own."""

  def reset(self, task: Task) -> Observation:
    """Starts `task` and returns the first observation."""

  def step(self, action: str) -> StepResult:
    """Plays one action. Never raises for wild text: a wasted turn.

    Raises:
      EnvironmentFault: something that the world depends on failed.
    """


class TaskSet(Protocol):
  """An ordered, indexable set of tasks with a content hash.

  `digest` is a hex SHA-256 over everything that decides what the tasks are. A set
  whose tasks cost much to make may offer `task_types` besides: a sequence of their
  types, in order.
  """

  digest: str

  def __getitem__(self, index: int) -> Task: ...

  def __len__(self) -> int: ...


def task_types(tasks: TaskSet) -> Sequence[str]:
  """Lists the type of each task; makes all tasks if the set must."""
  if hasattr(tasks, 'task_types'):
    return tasks.task_types
  return [tasks[i].task_type for i in range(len(tasks))]


class Tasks(Sequence[Task]):
  """Tasks of one split, made on demand; implements `TaskSet`.

  Args:
    split: name of the split.
    size: number of tasks.
    make: maps an index to its task.
    truth: everything that decides what the tasks are, as JSON.
    digest: hex SHA-256 of that; '' computes it.
  """

  def __init__(
    self,
    split: str,
    size: int,
    make: Callable[[int], Task],
    truth: Any = None,
    digest: str = '',
  ):
    self.split, self.size, self.make = split, size, make
    self.digest = digest or digest_of(truth)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Task:
    if not 0 <= index < self.size:
      raise IndexError(f'task {index}: {self.split} has {self.size} tasks')
    return self.make(index)


def check_split(split: str, splits: Iterable[str]) -> None:
  """Raises SplitError unless a world has tasks of this split."""
  if split not in splits:
    raise SplitError(split, f'must be one of {", ".join(splits)}')


class Expert(Protocol):
  """A scripted player, able to go on from any state of an episode."""

  def reset(self, task: Task, observation: Observation) -> None:
    """Starts an episode."""

  def plan(self, observation: Observation) -> tuple[str, str]:
    """Gives a short thought, and the action to play now."""

  def observe(self, action: str, observation: Observation) -> None:
    """Takes in the played action (perhaps another's) and its outcome."""


@dataclasses.dataclass(frozen=True)
class World:
  """Base class of worlds. Picklable; made from plain settings.

  A subclass is a frozen dataclass: its fields are the keys of `config.world`, each with
  a default (see `setting`). It must have `name`, `make_env` and either `splits` and
  `task` or `read_tasks`; all else has a default. It pickles as its settings, so what it
  makes of them belongs into a `functools.cached_property`.

  Attributes:
    name: of the world.
    splits: number of tasks by split.
    version: of the tasks; another version is another digest.
    instruction: the words that end every user message; '' for none.
    demonstrators: the kinds of expert that teach prompts with skills and without.
    names: sets of words that could change places and nothing would be done otherwise,
      as those of people: to be copied, not to be known.
    max_turns: turns per episode.
  """

  name: ClassVar[str] = ''
  splits: ClassVar[Mapping[str, int]] = {}
  version: ClassVar[int] = 1
  instruction: ClassVar[str] = INSTRUCTION
  demonstrators: ClassVar[tuple[str, str]] = ('', '')
  names: ClassVar[tuple[tuple[str, ...], ...]] = ()
  max_turns: int = dataclasses.field(default=50, kw_only=True, metadata={'least': 1})

  def __post_init__(self):
    """Checks all settings; the error names each wrong one."""
    wrong = []
    for field in dataclasses.fields(self):
      value, limits = getattr(self, field.name), field.metadata
      said = f'config.world.{field.name}={value!r}: must be'
      if limits.get('choices') and value not in limits['choices']:
        wrong.append(f'{said} one of {limits["choices"]}')
      if limits.get('least') is not None and value < limits['least']:
        wrong.append(f'{said} at least {limits["least"]}')
      if limits.get('most') is not None and value > limits['most']:
        wrong.append(f'{said} at most {limits["most"]}')
    if wrong:
      raise ValueError('; '.join(wrong))

  @property
  def settings(self) -> dict[str, Any]:
    """The settings by name."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  def __getstate__(self) -> dict[str, Any]:
    return self.settings

  @property
  def skills_path(self) -> pathlib.Path | None:
    """The skill bank beside the world's module; None if there is none."""
    path = pathlib.Path(sys.modules[type(self).__module__].__file__)
    path = path.with_name('skills.json')
    return path if path.exists() else None

  @property
  def digest(self) -> str:
    """Hex SHA-256 over everything that decides what episodes consist of."""
    return digest_of([self.name, self.tasks('train').digest, self.settings])

  def tasks(self, split: str) -> TaskSet:
    """Gives the tasks of a split, read once."""
    if split not in self._read:
      self._read[split] = self.read_tasks(split)
    return self._read[split]

  @functools.cached_property
  def _read(self) -> dict[str, TaskSet]:
    return {}

  def read_tasks(self, split: str) -> TaskSet:
    """Makes the tasks of a split ('train', 'valid_seen', ...)."""
    check_split(split, self.splits)
    truth = [self.name, self.version, self.settings, split, self.splits[split]]
    make = functools.partial(self.task, split)
    return Tasks(split, self.splits[split], make, truth)

  def task(self, split: str, index: int) -> Task:
    """Makes one task, the same whenever it is asked for."""
    raise NotImplementedError

  def published(self, rows: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Finds the tasks of a manifest that others evaluate on, in its order.

    Raises:
      ValueError: one line naming the row that names no task here.
    """
    raise ValueError(f'world {self.name} knows no published panels')

  def make_env(self) -> TextEnv:
    """Makes a fresh environment."""
    raise NotImplementedError

  def render(
    self,
    task: Task,
    history: History | Sequence[Exchange],
    observation: Observation,
  ) -> str:
    """Writes the user message of the next turn.

    `history` holds all turns so far or, where those made the prompt too long, the last
    of them (`whole(history)` has all: a message that counts turns counts those). The
    message always names the task and shows the observation, even with no history.
    """
    parts = [f'Your task: {task.goal}', *past_turns(history, len(history))]
    parts.append(self.follow_up(task, history, None, observation))
    return '\n\n'.join([*parts, *filter(None, [self.instruction])])

  def follow_up(
    self,
    task: Task,
    history: History | Sequence[Exchange],
    before: Observation | None,
    observation: Observation,
  ) -> str:
    """Writes the user message of a turn whose prompt holds the past whole.

    In the layout 'conversation' what was seen and said stands in the prompt as it was,
    so this says what is new since the observation `before` (None: all is).
    """
    del task  # The first message named it.
    said = f'Turn {len(whole(history)) + 1}, you see: {observation.text}'
    if not observation.admissible:
      return said
    known = before.admissible if before else ()
    return f'{said}\n\n{actions_since(known, observation.admissible)}'

  def parse(self, response: str, observation: Observation) -> ParsedAction:
    """Cuts the action out of a response; never raises.

    It is also asked about a response with what the chat template wrote before it, such
    as an opening `<think>`: an answer that is valid in either reading is valid.
    """
    return action_parser.parse_strict(
      response, lambda action: self.admits(action, observation)
    )

  def admits(self, action: str, observation: Observation) -> bool:
    """Tests an action for an effect; passes any where none is listed."""
    return action in observation.admissible or not observation.admissible

  def prefetch(self, actions: Iterable[str]) -> None:
    """Takes all actions about to be played, before the first of them.

    A world whose environments share something slow answers them together here; most
    have nothing to do. Never raises: a fault surfaces in the `step` that meets it.
    """

  def expert(self, kind: str, seed: int = 0) -> Expert:
    """Makes a scripted expert; `seed` orders its guesses."""
    raise ValueError(f'world {self.name} has no expert of kind {kind!r} to imitate')

  def response(self, thought: str, action: str) -> str:
    """Writes a response of this world's format: the inverse of `parse`."""
    return f'<think>{thought}</think><action>{action}</action>'

  def mistake(self, observation: Observation, random: Any) -> str:
    """Draws a plausible wrong action with the numpy Generator `random`."""
    choices = observation.admissible or ('',)
    return choices[int(random.integers(len(choices)))]


@runtime_checkable
class ShorteningWorld(Protocol):
  """A world with a rule to shorten its observations.

  Where a prompt has no room for the newest observation, an episode of any other world
  ends (`Outcome.PROMPT_TOO_LONG`).
  """

  def shorten(self, observation: Observation, characters: int) -> Observation:
    """Cuts an observation to about `characters`, marking each cut.

    Its admissible actions stay, and what cannot be left out: where that is all, the
    result is longer.
    """
