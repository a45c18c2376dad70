"""Whether two resets of one task agree, in two processes. No JAX.

A group's episodes must begin alike, and a replay must come to the same. Packages take
seeds and drop them in silence: what was hidden then differs within a group, and nothing
shows it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sdar_jax.envs import base
from sdar_jax.envs.pool import pool

TASKS = 3  # That are tried.
DEADLINE = 60.0  # s, for a game to be made and to answer.
_BETWEEN = '\x1f'


class _Probe:
  """Shows all that can be seen of a game in its first observation."""

  def __init__(self, world: base.World):
    self._world, self._env = world, world.make_env()

  def reset(self, task: base.Task) -> base.Observation:
    seen = [self._env.reset(task).text]
    if hasattr(self._env.game, 'hidden'):
      seen.append(self._env.game.hidden())
    for action in self._world.probe:
      result = self._env.step(str(action))
      seen.append(f'{result.observation.text} ({result.reward})')
      if result.done:
        break
    return base.Observation(_BETWEEN.join(seen))


@dataclasses.dataclass(frozen=True)
class _Probed:
  """A world of such environments, for workers."""

  world: Any

  def make_env(self) -> _Probe:
    return _Probe(self.world)

  def prefetch(self, actions: Any) -> None:
    del actions


def check(world: base.World, tasks: Sequence[base.Task]) -> None:
  """Resets each task in two processes.

  Raises:
    ValueError: a game cannot be reset, or not twice alike; one line.
  """
  with pool.WorkerPool(
    _Probed(world), workers=2, deadline=DEADLINE, retries=0
  ) as workers:
    starts = {(side, task.task_id): task for side in (0, 1) for task in tasks}
    try:
      seen = workers.reset(starts)
    except pool.PoolError as error:
      raise ValueError(f'{_said(world)}: {error}') from None
  for task in tasks:
    one, other = (seen[side, task.task_id] for side in (0, 1))
    for answer in (one, other):
      if isinstance(answer, base.EnvironmentFault):
        raise ValueError(f'{_said(world)}: {answer}')
    if one != other:
      parts = zip(one.text.split(_BETWEEN), other.text.split(_BETWEEN), strict=False)
      a, b = next((pair for pair in parts if pair[0] != pair[1]), (one, other))
      raise ValueError(
        f'{_said(world)}: two resets of task {task.task_id} differ ({_end(a, b)!r} and'
        f' {_end(b, a)!r}): its seed does not decide the game, and no group would share'
        ' a task'
      )


def _said(world: base.World) -> str:
  return f'config.world.env={world.env!r} ({world.name})'


def _end(text: Any, other: Any) -> str:
  """Cuts a text from a little before where another one differs."""
  a, b = str(text), str(other)
  place = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), 0)
  return a[max(place - 20, 0) :][:60]
