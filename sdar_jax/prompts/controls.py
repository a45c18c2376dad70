"""Controls of a teacher: what takes the place of what it knows. No JAX.

`algorithm.context` puts one in the place of a method's own context, so that the
difference is what that knowledge buys:

'none': the student's own prompt.
'other_task': skills as another task has them, with one at least that the row's own
  lacks; or the lesson of another task's episodes of the step, by a hash of their ids.
'shuffled': what the context shows with its words permuted, as many tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sdar_jax.batching.rows import Row
from sdar_jax.envs.base import Task
from sdar_jax.prompts import lessons
from sdar_jax.prompts.skills import NOTHING, SkillView, TeacherContext
from sdar_jax.trajectory import Trajectory

_LOOKED_AT = 64  # Tasks, for one whose skills are others.

_Shown = tuple[str, SkillView]


class Shown:
  """What a context shows of a step's rows; keeps what it found.

  Args:
    teacher: knows the skills.
    groups: a row of each trajectory of each group, by their ids.
    tasks: those that 'other_task' takes skills from, as of the training split.
  """

  def __init__(
    self,
    teacher: TeacherContext,
    groups: Mapping[int, Mapping[int, Row]],
    tasks: Sequence[Task],
  ):
    self._teacher, self._groups, self._tasks = teacher, groups, tasks
    self._known: dict[tuple[str, str], Any] = {}

  def skills(self, row: Row, block: str, view: SkillView) -> _Shown:
    """The text of skills for a row in the place of its own."""
    return block, view

  def lessons(self, kind: str, row: Row) -> Iterator[lessons.Block]:
    """The blocks of a row, the most wanted first."""
    return lessons.BLOCKS[kind](row, self._others(row))

  def _others(self, row: Row) -> list[Trajectory]:
    """Lists the group's other trajectories, shortest first, then by member."""
    group = self._groups[row.group_id]
    others = [r.trajectory for i, r in group.items() if i != row.trajectory_id]
    return sorted(others, key=lambda t: (len(t.turns), t.member))

  def _recalled(self, row: Row, text: str, find: Callable[[Row, str], Any]) -> Any:
    """Finds something of a task and a text, once."""
    name = (row.task.task_id, text)
    if name not in self._known:
      self._known[name] = find(row, text)
    return self._known[name]


class _OtherTask(Shown):
  def skills(self, row: Row, block: str, view: SkillView) -> _Shown:
    text = row.head.prompt_text
    other = self._recalled(row, text, self._unlike)
    return self._teacher.block(text, other) if other else ('', NOTHING)

  def lessons(self, kind: str, row: Row) -> Iterator[lessons.Block]:
    for stranger in self._strangers(row):
      for names, block in super().lessons(kind, stranger):
        yield tuple(f'{stranger.task.task_id}/{name}' for name in names), block

  def _strangers(self, row: Row) -> list[Row]:
    """Lists rows of other tasks' groups at this turn, by tasks' hashes."""
    found = []
    for group in self._groups.values():
      one = group[min(group, key=lambda t: lessons.rank(row.task.task_id, str(t)))]
      if one.task.task_id != row.task.task_id:
        turn = min(row.turn_id, max(len(one.trajectory.turns) - 2, 0))
        found.append(dataclasses.replace(one, turn_id=turn))
    key = lambda r: (lessons.rank(row.task.task_id, r.task.task_id), r.group_id)
    return sorted(found, key=key)

  def _unlike(self, row: Row, text: str) -> Task | None:
    """Finds a task with a skill that the row's own has not."""
    own = {*self._teacher.block(text, row.task)[1].skill_ids}
    start = lessons.rank(row.task.task_id)
    for place in range(min(len(self._tasks), _LOOKED_AT)):
      other = self._tasks[(start + place) % len(self._tasks)]
      shown = {*self._teacher.block(text, other)[1].skill_ids}
      if other.task_id != row.task.task_id and shown - own:
        return other
    return None


class _Shuffled(Shown):
  def skills(self, row: Row, block: str, view: SkillView) -> _Shown:
    return self._recalled(row, block, self._permuted) or '', view

  def lessons(self, kind: str, row: Row) -> Iterator[lessons.Block]:
    for names, block in super().lessons(kind, row):
      if block := self._recalled(row, block, self._permuted):
        yield names, block

  def _permuted(self, row: Row, block: str) -> str | None:
    return lessons.shuffled(block, row.task.task_id, self._teacher.size)


SHOWN = {'': Shown, 'none': Shown, 'other_task': _OtherTask, 'shuffled': _Shuffled}
CONTROLS = tuple(SHOWN)
