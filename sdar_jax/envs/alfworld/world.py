"""ALFWorld as one object: tasks, engine, prompt, parser and experts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.envs import base, benchmark
from sdar_jax.envs.alfworld import (
  engine,
  generated,
  official,
  prompts,
  published,
  rooms,
)
from sdar_jax.envs.alfworld import expert as experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlfworldWorld(benchmark.BenchmarkWorld):
  """ALFWorld, a household as text.

  Args:
    source: 'generated' or 'official' games.
    data_dir: where the official games lie; '' means $ALFWORLD_DATA.
    grammar: wording of official games: 'new', 'old', or 'file' for each file's own.
    size: of generated rooms, 'small' or 'full'.
    train_tasks: how many generated training games there are.
    max_turns: turns per episode (ref: 50).
    history_length: past exchanges that a prompt shows (ref: 2).
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' takes actions as the paper's code does, 'strict' only in the
      form that is asked for.
  """

  name = 'alfworld'
  prompts = prompts
  demonstrators = experts.ORDERS
  grammar: str = base.setting('new', choices=official.GRAMMARS)
  size: str = base.setting('full', choices=rooms.SIZES)
  # Every pass shuffles the whole split in memory.
  train_tasks: int = base.setting(generated.SPLITS['train'], least=1, most=10_000_000)

  def _generated(self, split: str) -> base.TaskSet:
    return generated.GeneratedGames(split, self.size, train_tasks=self.train_tasks)

  def _official(self, split: str) -> base.TaskSet:
    return official.OfficialGames(self.data_dir, split, self.grammar)

  def published(self, rows: Sequence[Mapping[str, Any]]) -> list[base.Task]:
    """Finds the official games that a manifest names."""
    return published.find(rows, self._official)

  def make_env(self) -> engine.AlfworldEnv:
    """Makes a fresh environment."""
    return engine.AlfworldEnv()

  def shorten(self, observation: base.Observation, characters: int) -> base.Observation:
    """Leaves out the end of an observation's list."""
    return prompts.shorten(observation, characters)

  def expert(self, kind: str, seed: int = 0) -> experts.ObservingExpert:
    """Makes a scripted expert: 'likely', or 'blind' (ordered by `seed`)."""
    self._check_kind(kind)
    return experts.ObservingExpert(kind, seed)

  def mistake(self, observation: base.Observation, random: Any) -> str:
    """Draws an admissible action, or one with a wrong name."""
    action = super().mistake(observation, random)
    if random.random() < 0.5:  # Something the world will not understand.
      action = action.rpartition(' ')[0] + f' {int(random.integers(1, 30))}'
    return action
