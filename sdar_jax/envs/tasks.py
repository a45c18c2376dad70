"""Sets of tasks, one for each split; a task is a `base.Task`."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol


class SplitError(ValueError):
  """A split that a world does not have; `why` is what its name must be."""

  def __init__(self, split: str, why: str):
    super().__init__(split, why)
    self.split, self.why = split, why

  def __str__(self) -> str:
    return f'split {self.split!r}: {self.why}'


def digest_of(value: Any) -> str:
  """Hashes a value's JSON: hex SHA-256."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class TaskSet(Protocol):
  """An ordered, indexable set of tasks with a content hash.

  `digest` is a hex SHA-256 over everything that decides what the tasks are. A set
  whose tasks cost much to make may offer `task_types` besides: a sequence of their
  types, in order.
  """

  digest: str

  def __getitem__(self, index: int) -> Any: ...

  def __len__(self) -> int: ...


def task_types(tasks: TaskSet) -> Sequence[str]:
  """Lists the type of each task; makes all tasks if the set must."""
  if hasattr(tasks, 'task_types'):
    return tasks.task_types
  return [tasks[i].task_type for i in range(len(tasks))]


class Tasks(Sequence[Any]):
  """Tasks of one split, made on demand; implements `TaskSet`.

  Args:
    split: name of the split.
    size: number of tasks.
    make: maps an index to its task.
    truth: everything that decides what the tasks are, as JSON.
    digest: hex SHA-256 of that; '' computes it.
  """

  def __init__(
    self,
    split: str,
    size: int,
    make: Callable[[int], Any],
    truth: Any = None,
    digest: str = '',
  ):
    self.split, self.size, self.make = split, size, make
    self.digest = digest or digest_of(truth)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Any:
    if not 0 <= index < self.size:
      raise IndexError(f'task {index}: {self.split} has {self.size} tasks')
    return self.make(index)


def check_split(split: str, splits: Iterable[str]) -> None:
  """Raises SplitError unless a world has tasks of this split."""
  if split not in splits:
    raise SplitError(split, f'must be one of {", ".join(splits)}')
