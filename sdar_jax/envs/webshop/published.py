"""Goals of a published manifest, among the official ones.

Manifests number goals by `metadata.goal_idx`, a place in an order that the original's
random generator makes, which also draws every price bound. Neither is in the files. So
a goal is found by its words, in the row's `text`, and takes its price bound from them.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sdar_jax.envs import base
from sdar_jax.envs.webshop.goals import NO_BOUND

_BOUND = re.compile(r',? and price lower than ([0-9]+(?:[.][0-9]+)?) dollars$')


def find(
  rows: Sequence[Mapping[str, Any]],
  splits: Iterable[str],
  tasks: Callable[[str], base.TaskSet],
) -> list[base.Task]:
  """Finds the goals that rows name by their words.

  Args:
    rows: of the manifest, in order.
    splits: all that there are.
    tasks: gives the official goals of a split.

  Raises:
    ValueError: one line naming a row whose words are of no goal, or of several.
  """
  every = [one for split in splits for one in _all(tasks(split))]
  by_words = collections.defaultdict(list)
  for task in every:
    by_words[_words(task.goal)].append(task)
  return [_goal(number, row, by_words) for number, row in enumerate(rows, 1)]


def _all(tasks: base.TaskSet) -> list[base.Task]:
  return [tasks[index] for index in range(len(tasks))]


def _words(text: str) -> str:
  return ' '.join(_BOUND.sub('', text.strip()).lower().split())


def _goal(
  number: int, row: Mapping[str, Any], by_words: Mapping[str, list[base.Task]]
) -> base.Task:
  text = str(row.get('text', '')).strip()
  alike = by_words.get(_words(text), [])
  if len(alike) != 1:
    index = row.get('metadata', {}).get('goal_idx')
    raise ValueError(
      f'row {number} (goal_idx {index}): its text {text[:60]!r} is that of'
      f' {len(alike)} goals in data_dir: a goal is found by its words alone'
    )
  bound = _BOUND.search(text)
  upper = float(bound[1]) if bound else NO_BOUND
  goal = dataclasses.replace(alike[0].payload, instruction_text=text, price_upper=upper)
  return dataclasses.replace(alike[0], goal=text, payload=goal)
