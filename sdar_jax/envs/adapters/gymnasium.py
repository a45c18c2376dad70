"""Gymnasium's interface on strings, which GEM has, too. No JAX."""

import dataclasses
from typing import Any

from sdar_jax.envs.adapters import foreign


class _Gymnasium:
  """A game of `reset(seed=) -> (text, info)` and a step of five."""

  def __init__(self, env: Any):
    self._env = env

  def reset(self, start: int) -> str:
    text, _ = self._env.reset(seed=start)
    return text

  def step(self, action: str) -> tuple[str, float, bool]:
    text, reward, terminated, truncated, _ = self._env.step(action)
    return text, reward, terminated or truncated or False

  def close(self) -> None:
    if hasattr(self._env, 'close'):
      self._env.close()

  def hidden(self) -> str:
    """Says what the environment would draw from, where it has seeded that."""
    random = getattr(getattr(self._env, 'unwrapped', self._env), '_np_random', None)
    return str(random.bit_generator.state) if random is not None else ''


@dataclasses.dataclass(frozen=True)
class GymnasiumWorld(foreign.ForeignWorld):
  """Environments whose observations and actions are strings.

  Args:
    maker: `gymnasium:make`, or that of another package with its interface, such as
      `gem:make`; or a class.
  """

  name = 'gymnasium'
  package = 'gymnasium'
  maker: str = 'gymnasium:make'

  def open(self) -> foreign.ForeignGame:
    """Makes a game."""
    return _Gymnasium(self.make_game())
