"""Games of a published manifest, among the official ones."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdar_jax.envs import base

# $ALFWORLD_DATA/json_2.1.1/valid_seen/type-object-.../trial/game.tw-pddl
_GAME = re.compile(r'([^/\\]+)[/\\]([^/\\]+[/\\][^/\\]+)[/\\]game\.tw-pddl')


def find(
  rows: Sequence[Mapping[str, Any]], tasks: Callable[[str], base.TaskSet]
) -> list[base.Task]:
  """Finds the games that rows name by `metadata.gamefile`.

  Args:
    rows: of the manifest, in order.
    tasks: gives the official games of a split.

  Raises:
    ValueError: one line naming a row without a game, or a game that is not there.
  """
  found, known = [], {}
  for number, row in enumerate(rows, 1):
    name = str(row.get('metadata', {}).get('gamefile'))
    match = _GAME.search(name)
    if match is None:
      raise ValueError(f'row {number} names no game: its gamefile is {name[:80]!r}')
    split, rest = match.groups()
    if split not in known:
      known[split] = {task.task_id: task for task in _all(tasks(split))}
    task_id = f'official/{split}/{rest}'.replace('\\', '/')
    if task_id not in known[split]:
      raise ValueError(f'row {number}: no playable game {task_id[:120]!r} in data_dir')
    found.append(known[split][task_id])
  return found


def _all(tasks: base.TaskSet) -> list[base.Task]:
  return [tasks[index] for index in range(len(tasks))]
