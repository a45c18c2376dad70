"""The official goals as tasks, made of files that lie where the user put them."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdar_jax import files
from sdar_jax.envs.base import Task
from sdar_jax.envs.webshop import disk_catalogue
from sdar_jax.envs.webshop.catalogue import Catalogue
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop

VERSION = 1
SPLITS = ('train', 'valid', 'test')


def data_root(data_dir: str) -> Path:
  """The folder of the official files: `data_dir`, or $WEBSHOP_DATA if it is ''.

  Raises:
    ValueError: neither is given, or there is no such folder.
  """
  named = data_dir or os.environ.get('WEBSHOP_DATA', '')
  if not named:
    raise ValueError(
      'official products: set config.world.data_dir or $WEBSHOP_DATA to the folder of '
      'the WebShop files (third_party/envs/README.md)'
    )
  root = files.local_path(named, 'config.world.data_dir or $WEBSHOP_DATA')
  if not root.is_dir():
    raise ValueError(f'official products: {root} is no folder (config.world.data_dir)')
  return root


def open_shop(data_dir: str, size: str, noun_source: str) -> Shop:
  """The shop of the official files, opened once per process."""
  return _open_shop(data_root(data_dir), size, noun_source)


@functools.cache
def _open_shop(root: Path, size: str, noun_source: str) -> Shop:
  return disk_catalogue.open_official(root, size, NounSource(noun_source))


@functools.cache
def _split_goals(
  catalogue: Catalogue, human: bool
) -> tuple[Goals, Mapping[str, np.ndarray]]:
  """All goals, and the indices of those of every split; found once per process."""
  goals = Goals(catalogue, human)
  return goals, goals.split()


class OfficialTasks(Sequence[Task]):
  """The tasks of one split of the official goals.

  Args:
    catalogue: the official products.
    split: 'train', 'valid' or 'test'.
    human: goals that people wrote, not the synthetic ones.
  """

  def __init__(self, catalogue: Catalogue, split: str, human: bool = False):
    if split not in SPLITS:
      raise ValueError(f'split {split!r}: official goals have {", ".join(SPLITS)}')
    self.split = split
    self._goals, indices = _split_goals(catalogue, human)
    self._indices = indices[split]
    truth = ['official', VERSION, catalogue.digest, human, split, len(self._indices)]
    self.digest = hashlib.sha256(json.dumps(truth).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Task:
    if not 0 <= index < len(self):
      raise IndexError(f'task {index}: {self.split} has {len(self)} official goals')
    goal = self._goals[int(self._indices[index])]
    return Task(
      task_id=f'official/{self.split}/{goal.goal_id}',
      task_type=goal.category,
      goal=goal.instruction_text,
      metadata={'task_type': goal.category, 'object': goal.query},
      payload=goal,
    )
