"""A world without tasks, for a model without a run. No JAX."""

import dataclasses
from typing import ClassVar

from sdar_jax.envs import base


@dataclasses.dataclass(frozen=True)
class Nowhere(base.World):
  """No world: a model is loaded for itself, to be talked to."""

  name: ClassVar[str] = 'nowhere'
  splits: ClassVar[dict[str, int]] = {'train': 0}
  instruction: ClassVar[str] = ''

  def task(self, split, index):
    raise IndexError('a model loaded for itself has no tasks')

  def make_env(self):
    raise ValueError('a model loaded for itself plays nothing: load a run, or a config')

  def response(self, thought, action):
    return action
