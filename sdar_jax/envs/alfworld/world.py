"""ALFWorld as one object: tasks, engine, prompt, parser and experts."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdar_jax.envs import action_parser as parsers
from sdar_jax.envs import base
from sdar_jax.envs.alfworld import engine, generated, official, prompts, rooms
from sdar_jax.envs.alfworld import expert as experts

SOURCES = ('generated', 'official')
EXPERTS = (*experts.ORDERS, 'oracle')


class AlfworldWorld:
  """ALFWorld, as rollout and evaluation see it; implements `envs.base.World`.

  Args:
    source: 'generated' or 'official' games.
    data_dir: where the official games lie; '' means $ALFWORLD_DATA.
    grammar: wording of official games: 'new', 'old', or 'file' for each file's own.
    size: of generated rooms, 'small' or 'full'.
    train_tasks: how many generated training games there are.
    max_turns: turns per episode (ref: 50).
    history_length: past exchanges that a prompt shows (ref: 2).
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' or 'strict'.

  Attributes:
    instruction: the words that end every user message.
    skills_path: the skill bank of this world.
    digest: hex SHA-256 over everything that decides what an agent is shown.
  """

  name = 'alfworld'
  demonstrators = ('likely', 'blind')
  names = ()

  def __init__(
    self,
    source: str = 'generated',
    data_dir: str = '',
    *,
    grammar: str = 'new',
    size: str = 'full',
    train_tasks: int = generated.SPLITS['train'],
    max_turns: int = 50,
    history_length: int = 2,
    prompt_style: str = 'paper',
    parser: str = 'reference',
  ):
    base.check_choice('source', source, SOURCES)
    base.check_choice('grammar', grammar, (*engine.GRAMMARS, 'file'))
    base.check_choice('size', size, rooms.SIZES)
    base.check_choice('prompt_style', prompt_style, prompts.STYLES)
    base.check_choice('parser', parser, parsers.MODES)
    base.check_at_least('train_tasks', train_tasks, 1)
    base.check_at_least('max_turns', max_turns, 1)
    base.check_at_least('history_length', history_length, 0)
    self.source = source
    self.data_dir = data_dir
    self.grammar = grammar
    self.size = size
    self.train_tasks = train_tasks
    self.max_turns = max_turns
    self.history_length = history_length
    self.prompt_style = prompt_style
    self.parser = parser
    self.instruction = prompts.instruction(prompt_style)
    self.skills_path = Path(__file__).with_name('skills.json')
    self._tasks: dict[str, base.TaskSet] = {}

  @property
  def digest(self) -> str:
    """Identifies what episodes consist of, the training games included."""
    truth = [self.name, self.tasks('train').digest, self.max_turns, self.parser]
    truth += [prompts.VERSION, self.prompt_style, self.history_length]
    return hashlib.sha256(json.dumps(truth).encode()).hexdigest()

  def tasks(self, split: str) -> base.TaskSet:
    """The tasks of 'train', 'valid_seen', 'valid_unseen'; official ones read once."""
    if split not in self._tasks:
      self._tasks[split] = self._read_tasks(split)
    return self._tasks[split]

  def _read_tasks(self, split: str) -> base.TaskSet:
    if self.source == 'generated':
      return generated.GeneratedTasks(split, self.size, train_tasks=self.train_tasks)
    return official.OfficialTasks(self.data_dir, split, self.grammar)

  def make_env(self) -> engine.AlfworldEnv:
    """A fresh environment."""
    return engine.AlfworldEnv()

  def render(
    self,
    task: base.Task,
    history: Sequence[base.Exchange],
    observation: base.Observation,
  ) -> str:
    """The user message of the next turn; see `envs.base.World`."""
    return prompts.render(
      self.prompt_style, task, history, observation, self.history_length
    )

  def shorten(self, observation: base.Observation, characters: int) -> base.Observation:
    """The observation with the end of what it lists left out."""
    return prompts.shorten(observation, characters)

  def parse(self, response: str, observation: base.Observation) -> base.ParsedAction:
    """Cuts the action out of a response; never raises."""
    if self.parser == 'strict':
      return parsers.parse_strict(response, observation.admissible)
    return parsers.parse_reference(response)

  def admits(self, action: str, observation: base.Observation) -> bool:
    """Whether the action is one of those that the game offers."""
    return action in observation.admissible

  def prefetch(self, actions: Iterable[str]) -> None:
    """Nothing is shared between environments."""

  def expert(
    self, kind: str, seed: int = 0, env: engine.AlfworldEnv | None = None
  ) -> experts.ObservingExpert:
    """A scripted expert: 'likely', 'blind' (ordered by `seed`), 'oracle' of `env`."""
    if kind not in EXPERTS:
      raise ValueError(f'expert {kind!r}: must be one of {EXPERTS}')
    if kind != 'oracle':
      return experts.ObservingExpert(kind, seed)
    if env is None:
      raise ValueError("expert 'oracle' reads the state: give it env=")
    return experts.OracleExpert(env)

  def response(self, thought: str, action: str) -> str:
    """What an expert would write."""
    return f'<think>{thought}</think><action>{action}</action>'

  def mistake(self, observation: base.Observation, random: Any) -> str:
    """A random admissible action, or one that names something else."""
    choices = observation.admissible
    action = choices[int(random.integers(len(choices)))]
    if random.random() < 0.5:  # Something the world will not understand.
      action = action.rpartition(' ')[0] + f' {int(random.integers(1, 30))}'
    return action
