"""Which tasks are trained on when, and what tells them apart. No JAX."""

import functools
import hashlib

import numpy as np

from sdar_jax.envs import base


def task_key(task_id: str, occurrence: int = 0) -> int:
  """Hashes a task id and its occurrence in the step to 63 bits."""
  salt = occurrence.to_bytes(16, 'big')  # All zero, which is none, the first time.
  raw = hashlib.blake2b(task_id.encode(), digest_size=8, salt=salt).digest()
  return int.from_bytes(raw, 'big') >> 1


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


def tasks_at(tasks: base.TaskSet, *, seed: int, cursor: int, count: int) -> list:
  """Tasks `cursor` to `cursor + count` of the training order.

  The order is a function of the seed alone, equal across methods: each pass over the
  split is a permutation of its own.
  """
  out = []
  for position in range(cursor, cursor + count):
    epoch, index = divmod(position, len(tasks))
    out.append(tasks[int(_epoch_order(seed, epoch, len(tasks))[index])])
  return out
