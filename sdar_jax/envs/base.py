"""The protocol that every world obeys. Plain Python, no JAX, no global state.

A world is one folder: an engine (`TextEnv`), a source of tasks (`TaskSet`), an action
parser, a prompt and an expert, tied together by one `World` object.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


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
  """One environment step: `reward` is the world's own, `success` ends with `done`."""

  observation: Observation
  reward: float
  done: bool
  success: bool


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


class TextEnv(Protocol):
  """One environment: a picklable object, its state its own."""

  def reset(self, task: Task) -> Observation:
    """Starts `task` and returns the first observation."""

  def step(self, action: str) -> StepResult:
    """Plays one action. Never raises for wild text: that is a wasted turn."""


class TaskSet(Protocol):
  """An ordered, indexable set of tasks with a content hash.

  `digest` is a hex SHA-256 over everything that decides what the tasks are.
  """

  digest: str

  def __getitem__(self, index: int) -> Task: ...

  def __len__(self) -> int: ...


class World(Protocol):
  """A world, as rollout and evaluation see it."""

  name: str
  max_turns: int

  def tasks(self, split: str) -> TaskSet:
    """The tasks of a split ('train', 'valid_seen', 'valid_unseen', ...)."""

  def make_env(self) -> TextEnv:
    """A fresh environment."""

  def render(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """The user message of the next turn. `history` holds all turns so far."""

  def parse(self, response: str, observation: Observation) -> ParsedAction:
    """Cuts the action out of a response; never raises."""
