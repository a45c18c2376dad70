"""The official goals as tasks, from the user's files."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdar_jax.envs import base, records
from sdar_jax.envs.webshop import disk_catalogue
from sdar_jax.envs.webshop.catalogue import Catalogue
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop

VERSION = 1
SPLITS = ('train', 'valid', 'test')


def data_root(data_dir: str) -> Path:
  """Finds the folder of the official files: `data_dir`, or $WEBSHOP_DATA."""
  return records.data_root(data_dir, 'WEBSHOP_DATA')


def open_shop(data_dir: str, size: str, nouns: NounSource) -> Shop:
  """Opens the shop of the official files, once per process."""
  return _open_shop(data_root(data_dir), size, nouns)


@functools.cache
def _open_shop(root: Path, size: str, nouns: NounSource) -> Shop:
  return disk_catalogue.open_official(root, size, nouns)


@functools.cache
def _split_goals(
  catalogue: Catalogue, human: bool
) -> tuple[Goals, Mapping[str, np.ndarray]]:
  """Finds all goals and the indices of every split, once per process."""
  goals = Goals(catalogue, human)
  return goals, goals.split()


class OfficialGoals(base.Tasks):
  """The tasks of one split of the official goals.

  Args:
    catalogue: the official products.
    split: 'train', 'valid' or 'test'.
    human: goals that people wrote, not the synthetic ones.
  """

  def __init__(self, catalogue: Catalogue, split: str, human: bool = False):
    base.check_split(split, SPLITS)
    self._goals, indices = _split_goals(catalogue, human)
    self._indices = indices[split]
    size = len(self._indices)
    truth = ['official', VERSION, catalogue.digest, human, split, size]
    super().__init__(split, size, self._make, truth)

  def _make(self, index: int) -> base.Task:
    goal = self._goals[int(self._indices[index])]
    return goal.task(f'official/{self.split}/{goal.goal_id}')
