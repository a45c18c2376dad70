"""The protocol that every world obeys. Plain Python, no JAX, no global state.

A world is one folder: an engine (`TextEnv`), a source of tasks (`TaskSet`), an action
parser, a prompt and an expert, tied together by one `World` object.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

CUT = ' ...'  # Ends a text that goes on.


class EnvironmentFault(RuntimeError):
  """Infrastructure failed, not the policy: the episode must not be trained on.

  Attributes:
    kind: what failed, one short word for counting, e.g. 'refused' or 'crash'.
  """

  def __init__(self, kind: str, message: str):
    super().__init__(f'{kind}: {message}')
    self.kind = kind
    self.message = message

  def __reduce__(
    self,
  ) -> Any:  # Exceptions with two arguments do not pickle by default.
    return type(self), (self.kind, self.message)


class EnvironmentTimeout(EnvironmentFault):
  """A fault whose cause is a missed deadline."""


@dataclasses.dataclass(frozen=True)
class Task:
  """What to solve. Everything random about its episodes derives from `task_id`.

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
  """What the agent sees: the text, and the actions that would do something."""

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


@dataclasses.dataclass(frozen=True)
class ParsedAction:
  """An action cut out of a response.

  Attributes:
    action: the text for the environment; may be empty.
    valid: the response obeyed the format (and, in strict mode, is admissible).
  """

  action: str
  valid: bool


@dataclasses.dataclass(frozen=True)
class Exchange:
  """One past turn as the prompt's history shows it."""

  observation: str
  action: str


class History(tuple):
  """The exchanges that a prompt may show: all of an episode, or the last of them.

  Attributes:
    whole: all of them, oldest first: what is true of the episode, its turn number
      say, is read here.
  """

  whole: tuple[Exchange, ...]

  def __new__(cls, whole: Iterable[Exchange] = (), shown: int | None = None):
    """The last `shown` exchanges of `whole`; None shows all."""
    whole = tuple(whole)
    count = len(whole) if shown is None else min(shown, len(whole))
    history = super().__new__(cls, whole[len(whole) - count :])
    history.whole = whole
    return history

  def __reduce__(self) -> Any:
    return type(self), (self.whole, len(self))


def whole(history: Sequence[Exchange]) -> Sequence[Exchange]:
  """All turns so far, of which `history` may be the last; a plain sequence is all."""
  return history.whole if isinstance(history, History) else history


def cut(text: str, characters: int) -> str:
  """A text, or its beginning up to a word's end with `CUT` after it.

  Args:
    text: any.
    characters: the longest that the result may be; below `len(CUT)` it is `CUT`.
  """
  if len(text) <= characters:
    return text
  head = text[: max(characters - len(CUT), 0)]
  if head and not head[-1].isspace() and not text[len(head)].isspace():
    head = re.sub(r'\s\S*\Z', '', head)  # A text of one word is cut inside it.
  return head.rstrip() + CUT


def fair_limit(lengths: Sequence[int], total: int) -> int:
  """The largest cap on each length under which their sum is at most `total`."""
  left, limit = total, 0
  for done, length in enumerate(sorted(lengths)):
    limit = left // (len(lengths) - done)
    if length > limit:
      return limit
    left -= length
  return max(limit, *lengths, 0)


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
  """Raises ValueError unless a world's setting is one of `choices`."""
  if value not in choices:
    raise ValueError(f'config.world.{key}={value!r}: must be one of {tuple(choices)}')


def check_at_least(key: str, value: int, bound: int) -> None:
  """Raises ValueError if a world's setting is below `bound`."""
  if value < bound:
    raise ValueError(f'config.world.{key}={value}: must be at least {bound}')


class TextEnv(Protocol):
  """One environment: a picklable object, its state its own."""

  def reset(self, task: Task) -> Observation:
    """Starts `task` and returns the first observation."""

  def step(self, action: str) -> StepResult:
    """Plays one action. Never raises for wild text: that is a wasted turn.

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
  """The type of each task, in order; makes every task if the set does not say."""
  if hasattr(tasks, 'task_types'):
    return tasks.task_types
  return [tasks[i].task_type for i in range(len(tasks))]


class World(Protocol):
  """A world, as rollout and evaluation see it. Picklable; made from plain settings.

  Attributes:
    name: of the world.
    max_turns: turns per episode.
    instruction: the words that end every user message; '' for none.
    skills_path: the world's own skill bank.
    digest: hex SHA-256 over everything that decides what episodes consist of.
  """

  name: str
  max_turns: int
  instruction: str
  skills_path: Path
  digest: str

  def tasks(self, split: str) -> TaskSet:
    """The tasks of a split ('train', 'valid_seen', 'valid_unseen', ...)."""

  def make_env(self) -> TextEnv:
    """A fresh environment."""

  def render(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """The user message of the next turn.

    `history` holds all turns so far or, where those made the prompt too long, the last
    of them (`whole(history)` has all: a message that counts turns counts those). The
    message always names the task and shows the observation, even with no history.
    """

  def parse(self, response: str, observation: Observation) -> ParsedAction:
    """Cuts the action out of a response; never raises.

    It is also asked about a response with what the chat template wrote before it, such
    as an opening `<think>`: an answer that is valid in either reading is valid.
    """

  def admits(self, action: str, observation: Observation) -> bool:
    """Whether the action can do something where the agent stands."""

  def prefetch(self, actions: Iterable[str]) -> None:
    """Told of all actions that are about to be played, before the first of them.

    A world whose environments share something slow answers them together here; most
    have nothing to do. Never raises: a fault surfaces in the `step` that meets it.
    """


@runtime_checkable
class ShorteningWorld(Protocol):
  """A world that knows how to shorten what it says.

  Where a prompt has no room for the newest observation, an episode of any other world
  ends (`Outcome.PROMPT_TOO_LONG`).
  """

  def shorten(self, observation: Observation, characters: int) -> Observation:
    """The observation in about `characters` characters, a mark where text is gone.

    Its admissible actions stay, and what cannot be left out: where that is all, the
    result is longer.
    """


class Expert(Protocol):
  """A scripted player that says what to do next from wherever an episode stands."""

  def reset(self, task: Task, observation: Observation) -> None:
    """A new episode."""

  def plan(self, observation: Observation) -> tuple[str, str]:
    """A short thought, and the action to play now."""

  def observe(self, action: str, observation: Observation) -> None:
    """Told what was played (not always what it planned) and what came of it."""


class TeachableWorld(World, Protocol):
  """A world that also has experts to imitate, for `--mode=sft`.

  Attributes:
    demonstrators: the kinds of expert that teach prompts with skills and without.
    names: sets of words that could change places and nothing would be done otherwise,
      as those of people: to be copied, not to be known.
  """

  demonstrators: tuple[str, str]
  names: tuple[tuple[str, ...], ...]

  def expert(self, kind: str, seed: int = 0) -> Expert:
    """A scripted expert; `seed` orders what it does not know better."""

  def response(self, thought: str, action: str) -> str:
    """A response of this world's format: the inverse of `parse`."""

  def mistake(self, observation: Observation, random: Any) -> str:
    """A plausible wrong action, drawn from the numpy Generator `random`."""
