"""Base class of the benchmark worlds: ALFWorld, WebShop and Search-QA.

Each has generated tasks of our own and official ones read from files, a prompt for real
models and one for a small model, the reference's parser and a strict one.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from sdar_jax.envs import action_parser, base
from sdar_jax.envs.base import Exchange, History, Observation, Task

SOURCES = ('generated', 'official')
STYLES = ('paper', 'compact')


@dataclasses.dataclass(frozen=True)
class BenchmarkWorld(base.World, abc.ABC):
  """A world with two sources of tasks, two prompt styles and two parsers.

  Attributes:
    prompt_version: of the words of both styles; another is another digest.
    paper_instruction: the words that end the prompt for real models: how to answer.
    fallback: characters at a response's end that the reference's parser takes for the
      action where there is none.
    source: 'generated' or 'official' tasks.
    data_dir: folder of the official files.
    max_turns: turns per episode.
    history_length: past turns that a prompt shows.
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' takes actions as the paper's code does, 'strict' only in the
      form that is asked for.
  """

  prompt_version: ClassVar[int]
  paper_instruction: ClassVar[str]
  fallback: ClassVar[int] = action_parser.ALFWORLD_FALLBACK
  source: str = base.setting('generated', choices=SOURCES)
  data_dir: str = ''
  _: dataclasses.KW_ONLY
  history_length: int = base.setting(2, least=0)
  prompt_style: str = base.setting('paper', choices=STYLES)
  parser: str = base.setting('reference', choices=action_parser.MODES)

  @property
  def instruction(self) -> str:
    """The words at the end of every user message: how to answer."""
    return self.paper_instruction if self.prompt_style == 'paper' else ''

  @property
  def digest(self) -> str:
    """Hex SHA-256 over the content of episodes."""
    truth = [self.name, self.tasks('train').digest, self.max_turns, self.parser]
    truth += [*self._rules(), self.prompt_version, self.prompt_style]
    return base.digest_of([*truth, self.history_length])

  def _rules(self) -> list[Any]:
    """Lists further settings of a view and its pay, for the digest."""
    return []

  def read_tasks(self, split: str) -> base.TaskSet:
    """Makes the generated tasks of a split, or reads the official ones."""
    if self.source == 'generated':
      return self._generated(split)
    return self._official(split)

  @abc.abstractmethod
  def _generated(self, split: str) -> base.TaskSet:
    """Makes the generated tasks of a split."""

  @abc.abstractmethod
  def _official(self, split: str) -> base.TaskSet:
    """Reads the official tasks of a split."""

  def render(
    self, task: Task, history: History | Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the user message of the next turn in the prompt's style."""
    write = self.paper if self.prompt_style == 'paper' else self.compact
    return write(task, history, observation)

  @abc.abstractmethod
  def paper(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for real models.

    Args:
      task: for its goal.
      history: the past turns that may be shown (see `envs.base.whole`).
      observation: the current one.
    """

  @abc.abstractmethod
  def compact(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for the small model; arguments as for `paper`.

    It is what the agent has read so far, boiled down to a few short lines.
    """

  def follow_up(
    self,
    task: Task,
    history: History | Sequence[Exchange],
    before: Observation | None,
    observation: Observation,
  ) -> str:
    """Writes what is new since the turn before; alike in all styles."""
    del task  # The first message named it.
    number = len(base.whole(history)) + 1
    return self.now(number, before, observation)

  @abc.abstractmethod
  def now(self, turn: int, before: Observation | None, observation: Observation) -> str:
    """Writes what is seen in a turn and what can be done, or has changed."""

  def parse(self, response: str, observation: Observation) -> base.ParsedAction:
    """Cuts the action out of a response; never raises."""
    if self.parser == 'reference':
      return action_parser.parse_reference(response, self.fallback)
    return super().parse(response, observation)

  def _check_kind(self, kind: str) -> None:
    """Raises ValueError unless there is an expert of this kind."""
    if kind not in self.demonstrators:
      raise ValueError(f'expert {kind!r}: must be one of {self.demonstrators}')
