"""Privileged contexts of teachers, row by row. No JAX.

Everything that is not a skill is a block of plain text of our own wording
(`prompts.lessons`), placed as skills are and shown whole or not at all. A row for which
there is nothing to show, or no room, keeps the plain prompt and an empty view: it is
not taught.

In a conversation the teacher's prompt differs at its head only: what is shown stands
where the conversation began, and all that was said and seen since follows as it was.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from sdar_jax.batching.rows import Row
from sdar_jax.envs.base import Task
from sdar_jax.prompts import controls, lessons
from sdar_jax.prompts.skills import NOTHING, SkillError, SkillView, TeacherContext

PLAIN = 'plain'  # In a view: the prompt that shows nothing is itself the lesson.
CONTEXTS = ('skills', 'other_view', *lessons.BLOCKS, 'none')

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
    empty where another context has nothing for the row, or the same words: it then is
    not taught, since there is nothing to compare.
  """
  if control == 'nothing':
    own = [row.turn.prompt_ids for row in rows]
    return [own] * len(kinds), [NOTHING] * len(rows)
  arguments = {'sees_skills': sees_skills, 'control': control, 'tasks': tasks}
  made = [teacher_rows(kind, teacher, rows, **arguments) for kind in kinds]
  prompts, seen = zip(*made)
  views = []
  for (ids, *others), (first, *rest) in zip(zip(*prompts), zip(*seen), strict=True):
    # Under 'none' they are alike on purpose.
    alike = control != 'none' and any(np.array_equal(ids, other) for other in others)
    compared = all(view.skill_ids for view in rest) and not alike
    views.append(first if compared else SkillView((), first.left_out, 0))
  return list(prompts), views


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
    control: one of `controls.CONTROLS`.
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
  if control not in controls.CONTROLS:
    raise ValueError(f'teacher control {control!r}: must be one of {controls.CONTROLS}')
  if 'none' in (kind, control):
    plain = SkillView((PLAIN,), (), 0)
    return [row.turn.prompt_ids for row in rows], [plain] * len(rows)
  shown = controls.SHOWN[control](teacher, _groups(rows), tasks)
  prompts, views = [], []
  for row, sees in zip(rows, sees_skills, strict=True):
    ids, view = _prompt(kind, teacher, shown, row, sees)
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


def _prompt(
  kind: str, teacher: TeacherContext, shown: controls.Shown, row: Row, sees: bool
) -> _Prompted:
  """The prompt of a row's head, and its view."""
  text = row.head.prompt_text
  if kind in lessons.BLOCKS:
    return _first_that_fits(teacher, text, shown.lessons(kind, row))
  block, view = teacher.block(text, row.task)
  if kind == 'other_view' and sees and view.skill_ids:  # Else one view only.
    return teacher.plain(text), SkillView((PLAIN,), (), 0)
  if block:
    block, view = shown.skills(row, block, view)
  if not block:
    return teacher.plain(text), NOTHING
  return teacher.place(text, block), view


def _first_that_fits(
  teacher: TeacherContext, text: str, blocks: Iterable[lessons.Block]
) -> _Prompted:
  """Places the first block within the budget; `left_out` names the others."""
  tried: dict[str, None] = {}
  for names, block in blocks:
    placed = teacher.with_block(text, block)
    if placed is not None:
      ids, tokens = placed
      left_out = tuple(name for name in tried if name not in names)
      return ids, SkillView(names, left_out, tokens)
    tried |= dict.fromkeys(names)
  view = SkillView((), tuple(tried), 0) if tried else NOTHING
  return teacher.plain(text), view
