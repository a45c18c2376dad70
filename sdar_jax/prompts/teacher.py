"""Privileged contexts of teachers, row by row. No JAX.

Everything that is not a skill is a block of plain text of our own wording
(`prompts.lessons`), placed as skills are and shown whole or not at all. A row for which
there is nothing to show, or no room, keeps the plain prompt and an empty view: it is
not taught.

In a conversation the teacher's prompt differs at its head only: what is shown stands
where the conversation began, and all that was said and seen since follows as it was.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from sdar_jax.batching.rows import Row
from sdar_jax.envs.base import Task
from sdar_jax.prompts import lessons
from sdar_jax.prompts.bank import SkillError
from sdar_jax.prompts.skills import NOTHING, SkillView, TeacherContext
from sdar_jax.trajectory import Trajectory

PLAIN = 'plain'  # In a view: the prompt that shows nothing is itself the lesson.
CONTEXTS = ('skills', 'other_view', *lessons.BLOCKS, 'none')
# What `algorithm.context` puts in a context's place, to see what its knowledge buys.
CONTROLS = ('', 'none', 'other_task', 'shuffled')
_LOOKED_AT = 64  # Tasks, for one whose skills are others.

_Prompted = tuple[np.ndarray, SkillView]


def lessons_of(
  kinds: Sequence[str],
  teacher: TeacherContext,
  rows: Sequence[Row],
  *,
  sees_skills: Sequence[bool],
  control: str = '',
  tasks: Sequence[Task] = (),
) -> tuple[list[list[np.ndarray]], list[SkillView]]:
  """The prompts of a step's rows for each context of a method.

  Args:
    kinds: its contexts, one or two; other arguments as `teacher_rows`.
    control: besides 'nothing', which teaches no row, by the student's own prompts.

  Returns:
    For each context the prompts of the rows, in order; and the views of the first,
    empty where another context has nothing for the row, which then is not taught.
  """
  if control == 'nothing':
    own = [row.turn.prompt_ids for row in rows]
    return [own] * len(kinds), [NOTHING] * len(rows)
  arguments = {'sees_skills': sees_skills, 'control': control, 'tasks': tasks}
  made = [teacher_rows(kind, teacher, rows, **arguments) for kind in kinds]
  views = [
    first if all(view.skill_ids for view in rest) else SkillView((), first.left_out, 0)
    for first, *rest in zip(*(views for _, views in made), strict=True)
  ]
  return [prompts for prompts, _ in made], views


def teacher_rows(
  kind: str,
  teacher: TeacherContext,
  rows: Sequence[Row],
  *,
  sees_skills: Sequence[bool],
  control: str = '',
  tasks: Sequence[Task] = (),
) -> tuple[list[np.ndarray], list[SkillView]]:
  """The teacher's prompts of a step's rows.

  Args:
    kind: what it sees, one of `CONTEXTS` (`lessons` says what each is).
    teacher: places text in prompts, and knows the skills.
    rows: [B], every row of the step, so that each episode meets all its siblings.
    sees_skills: [B], whether the row's student saw skills.
    control: one of `CONTROLS`: '' for `kind` itself; 'none' in its place; 'other_task':
      skills as another of `tasks` has them, with one at least that the row's own lacks,
      or the lesson of another task's episodes of the step, by a hash of their ids;
      'shuffled': what `kind` shows with its words permuted, as many tokens.
    tasks: those that 'other_task' takes skills from, as of the training split.

  Returns:
    A prompt's int32 ids and a view for each row, in order.

  Raises:
    ValueError: unknown `kind` or `control`.
    SkillError: the teacher cannot show skills, or none of its skills to any row. That
      no episode is worth showing may happen in a step; a bank that never has anything
      to say is a mistake.
  """
  if kind not in CONTEXTS:
    raise ValueError(f'teacher context {kind!r}: must be one of {CONTEXTS}')
  if control not in CONTROLS:
    raise ValueError(f'teacher control {control!r}: must be one of {CONTROLS}')
  if 'none' in (kind, control):
    plain = SkillView((PLAIN,), (), 0)
    return [row.turn.prompt_ids for row in rows], [plain] * len(rows)
  step = _Step(kind, control, teacher, _groups(rows), tasks)
  prompts, views = [], []
  for row, sees in zip(rows, sees_skills, strict=True):
    ids, view = step.prompt(row, sees)
    ids = np.concatenate([ids, row.turn.prompt_ids[len(row.head.prompt_ids) :]])
    prompts.append(ids)
    # A prompt like the student's teaches nothing, whatever it was meant to show.
    same = np.array_equal(ids, row.turn.prompt_ids)
    views.append(SkillView((), view.left_out, 0) if same else view)
  if kind not in lessons.BLOCKS:
    _check_shown(teacher, rows, views, 'the teacher')
  return prompts, views


def student_views(
  teacher: TeacherContext, rows: Sequence[Row], sees_skills: Sequence[bool]
) -> list[SkillView]:
  """Collects the skills in each student's own prompt.

  Raises:
    SkillError: some were to see skills, and none did.
  """
  views = [SkillView(row.turn.skills, (), row.turn.skill_tokens) for row in rows]
  seeing = [row for row, sees in zip(rows, sees_skills, strict=True) if sees]
  _check_shown(teacher, seeing, views, 'a student that sees skills')
  return views


def _check_shown(
  teacher: TeacherContext, rows: Sequence[Row], views: Sequence[SkillView], who: str
) -> None:
  """Raises SkillError if there are rows and no view shows anything."""
  if rows and not taught(views).any():
    task = rows[0].task
    raise SkillError(
      f'{who} saw nothing in any of {len(rows)} turns, as of {task.task_id!r} of type'
      f' {task.task_type!r}: {teacher.cause}'
    )


def taught(views: Sequence[SkillView]) -> np.ndarray:
  """[B] bool, whether a row's teacher saw anything."""
  return np.asarray([bool(view.skill_ids) for view in views], bool)


def _groups(rows: Sequence[Row]) -> dict[int, dict[int, Row]]:
  """A row of each trajectory of each group, by their ids."""
  out: dict[int, dict[int, Row]] = {}
  for row in rows:
    out.setdefault(row.group_id, {})[row.trajectory_id] = row
  return out


def _others(group: Mapping[int, Row], row: Row) -> list[Trajectory]:
  """Lists the group's other trajectories, shortest first, then by member."""
  others = [
    r.trajectory for identity, r in group.items() if identity != row.trajectory_id
  ]
  return sorted(others, key=lambda t: (len(t.turns), t.member))


@dataclasses.dataclass(frozen=True)
class _Step:
  """A context over a step's rows, under a control; keeps what it found."""

  kind: str
  control: str
  teacher: TeacherContext
  groups: Mapping[int, Mapping[int, Row]]
  tasks: Sequence[Task]
  known: dict[tuple[str, str], str | Task | None] = dataclasses.field(
    default_factory=dict
  )

  def prompt(self, row: Row, sees: bool) -> _Prompted:
    """The prompt of a row's head, and its view."""
    teacher, text = self.teacher, row.head.prompt_text
    if self.kind in lessons.BLOCKS:
      return self._first_that_fits(text, self._blocks(row))
    block, view = teacher.block(text, row.task)
    if self.kind == 'other_view' and sees and view.skill_ids:  # Else one view only.
      return teacher.plain(text), SkillView((PLAIN,), (), 0)
    if self.control == 'other_task' and block:
      other = self._recalled(row, text, self._unlike)
      block, view = teacher.block(text, other) if other else ('', NOTHING)
    elif self.control == 'shuffled' and block:
      block = self._recalled(row, block, self._shuffled)
    if not block:
      return teacher.plain(text), NOTHING
    return teacher.place(text, block), view

  def _blocks(self, row: Row) -> Iterator[lessons.Block]:
    make = lessons.BLOCKS[self.kind]
    if self.control == 'other_task':
      for stranger in self._strangers(row):
        others = _others(self.groups[stranger.group_id], stranger)
        for names, block in make(stranger, others):
          yield tuple(f'{stranger.task.task_id}/{name}' for name in names), block
      return
    for names, block in make(row, _others(self.groups[row.group_id], row)):
      if self.control == 'shuffled':
        block = self._recalled(row, block, self._shuffled)
      if block:
        yield names, block

  def _strangers(self, row: Row) -> list[Row]:
    """Lists rows of other tasks' groups at this turn, by tasks' hashes."""
    found = []
    for group in self.groups.values():
      one = group[min(group, key=lambda t: lessons.rank(row.task.task_id, str(t)))]
      if one.task.task_id != row.task.task_id:
        turn = min(row.turn_id, max(len(one.trajectory.turns) - 2, 0))
        found.append(dataclasses.replace(one, turn_id=turn))
    key = lambda r: (lessons.rank(row.task.task_id, r.task.task_id), r.group_id)
    return sorted(found, key=key)

  def _recalled(self, row: Row, text: str, find) -> str | Task | None:
    name = (row.task.task_id, text)
    if name not in self.known:
      self.known[name] = find(row, text)
    return self.known[name]

  def _shuffled(self, row: Row, block: str) -> str | None:
    return lessons.shuffled(block, row.task.task_id, self.teacher.size)

  def _unlike(self, row: Row, text: str) -> Task | None:
    """Finds a task with a skill that the row's own has not."""
    own = {*self.teacher.block(text, row.task)[1].skill_ids}
    start = lessons.rank(row.task.task_id)
    for place in range(min(len(self.tasks), _LOOKED_AT)):
      other = self.tasks[(start + place) % len(self.tasks)]
      shown = {*self.teacher.block(text, other)[1].skill_ids}
      if other.task_id != row.task.task_id and shown - own:
        return other
    return None

  def _first_that_fits(self, text: str, blocks: Iterable[lessons.Block]) -> _Prompted:
    """Places the first block within the budget; `left_out` names the others."""
    tried: dict[str, None] = {}
    for names, block in blocks:
      placed = self.teacher.with_block(text, block)
      if placed is not None:
        ids, tokens = placed
        left_out = tuple(name for name in tried if name not in names)
        return ids, SkillView(names, left_out, tokens)
      tried |= dict.fromkeys(names)
    view = SkillView((), tuple(tried), 0) if tried else NOTHING
    return self.teacher.plain(text), view
