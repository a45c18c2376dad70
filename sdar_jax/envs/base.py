"""Types and the base class of every world. No global state.

A world is one folder: an engine (`TextEnv`), tasks, a prompt and a parser, behind one
subclass of `World`.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from sdar_jax.envs import action_parser
from sdar_jax.envs.action_parser import ParsedAction
from sdar_jax.envs.faults import EnvironmentFault as EnvironmentFault
from sdar_jax.envs.faults import EnvironmentTimeout as EnvironmentTimeout
from sdar_jax.envs.tasks import SplitError as SplitError  # For worlds to raise.
from sdar_jax.envs.tasks import Tasks, TaskSet, check_split, digest_of
from sdar_jax.envs.texts import actions_since

INSTRUCTION = (
  'First think, between <think> and </think>. Then give one action, between <action> '
  'and </action>.'
)


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


@dataclasses.dataclass(frozen=True)
class Exchange:
  """One past turn as the prompt's history shows it."""

  observation: str
  action: str


class History(tuple):
  """The exchanges of a prompt: all of an episode, or the last of them.

  Attributes:
    whole: all of them, oldest first: what is true of the episode, its turn number
      say, is read here.
  """

  whole: tuple[Exchange, ...]

  def __new__(cls, whole: Iterable[Exchange] = (), shown: int | None = None):
    """Keeps the last `shown` exchanges of `whole`; None shows all."""
    whole = tuple(whole)
    count = len(whole) if shown is None else min(shown, len(whole))
    history = super().__new__(cls, whole[len(whole) - count :])
    history.whole = whole
    return history

  def __reduce__(self) -> Any:
    return type(self), (self.whole, len(self))


def whole(history: Sequence[Exchange]) -> Sequence[Exchange]:
  """Gives all turns so far; a plain sequence is all of them."""
  return history.whole if isinstance(history, History) else history


def past_turns(
  history: Sequence[Exchange],
  limit: int,
  saw: str = 'you saw',
  shown: Callable[[str], str] = str,
) -> list[str]:
  """Writes the paragraph about past turns; none before the first turn.

  Args:
    history: the turns that a prompt may show (see `whole`).
    limit: how many of them to show at most, the newest.
    saw: words between the number of a turn and its observation.
    shown: maps an observation's text to what is shown of it.
  """
  turns, last = len(whole(history)), history[max(len(history) - limit, 0) :]
  if not turns:
    return []
  lines = [f'Turns taken so far: {turns}.' + f' The last {len(last)}:' * bool(last)]
  for number, exchange in enumerate(last, turns - len(last) + 1):
    lines.append(f'Turn {number}, {saw}: {shown(exchange.observation)}')
    lines.append(f'Turn {number}, you did: {exchange.action}')
  return ['\n'.join(lines)]


class TextEnv(Protocol):
  """One environment: a picklable object, its state its own."""

  def reset(self, task: Task) -> Observation:
    """Starts `task` and returns the first observation."""

  def step(self, action: str) -> StepResult:
    """Plays one action. Never raises for wild text: a wasted turn.

    Raises:
      EnvironmentFault: something that the world depends on failed.
    """


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
