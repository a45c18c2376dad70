"""TextArena's games for one player. No JAX.

They draw from Python's process-wide generator, which each game here has to itself. The
names that end in -raw are the ones to take: others show the whole game in every
observation, which prompts here have anyway.
"""

import dataclasses
from typing import Any

from sdar_jax.envs.adapters import foreign


class _TextArena:
  """A game whose rewards come at its end."""

  def __init__(self, env: Any):
    self._env = env

  def reset(self, start: int) -> str:
    self._env.reset(num_players=1, seed=start)
    return self._seen()

  def step(self, action: str) -> tuple[str, float, bool]:
    done, _ = self._env.step(action=action)
    if not done:
      return self._seen(), 0.0, False
    text = self._seen()
    rewards, info = self._env.close()
    reason = info.get(0, {}).get('reason')  # What no observation says any more.
    return foreign.joined([text, reason]), (rewards or {}).get(0, 0.0), True

  def hidden(self) -> str:
    """Says the state that only the game knows."""
    return repr(self._env.state.game_state)

  def _seen(self) -> str:
    """Joins what others than the player have said since."""
    player, said = self._env.get_observation()
    if isinstance(said, str):
      return said
    return foreign.joined([text for speaker, text, *_ in said if speaker != player])


@dataclasses.dataclass(frozen=True)
class TextArenaWorld(foreign.ForeignWorld):
  """Games for one player, such as env='GuessTheNumber-v0-raw'."""

  name = 'textarena'
  package = 'textarena'
  maker: str = 'textarena:make'

  def open(self) -> foreign.ForeignGame:
    """Makes a game."""
    return _TextArena(self.make_game())
