"""Privileged contexts of teachers, row by row. No JAX.

Everything that is not a skill is a block of plain text of our own wording, placed as
skills are and shown whole or not at all. A row for which there is nothing to show, or
no room, keeps the plain prompt and an empty view: it is not taught.

In a conversation the teacher's prompt differs at its head only: what is shown stands
where the conversation began, and all that was said and seen since follows as it was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from sdar_jax.batching.rows import Row
from sdar_jax.prompts.bank import SkillError
from sdar_jax.prompts.skills import NOTHING, SkillView, TeacherContext
from sdar_jax.trajectory import Outcome, Trajectory

PLAIN = 'plain'  # In a view: the prompt that shows nothing is itself the lesson.

_Prompted = tuple[np.ndarray, SkillView]
_Others = Sequence[Trajectory]  # Of a row's group, as `_others` sorts them.
_Block = tuple[tuple[str, ...], str]  # Names of what it shows, and the text.


def teacher_rows(
  kind: str,
  teacher: TeacherContext,
  rows: Sequence[Row],
  *,
  sees_skills: Sequence[bool],
) -> tuple[list[np.ndarray], list[SkillView]]:
  """The teacher's prompts of a step's rows.

  Args:
    kind: what it sees, one of `CONTEXTS`:
      'skills': the task's skills.
      'other_view': the plain prompt (named `PLAIN`) where the student's showed skills,
        else the skills. (UCOB, arXiv 2606.29502)
      'sibling': the actions of another episode of the group that solved the task, the
        shortest that fits. (SDPO, arXiv 2601.20802)
      'feedback': what the world answered to this turn and how the episode ended; only
        the end where both do not fit. (SDPO, arXiv 2601.20802)
      'contrast': the actions of another episode that solved the task, and those of one
        that failed and that are not among them, the shortest pair that fits. Ours for
        the DO/AVOID prior that a language model writes in GRSD (arXiv 2607.28076); a
        row of whose group no two others ended differently gets none.
    teacher: places text in prompts, and knows the skills.
    rows: [B], every row of the step, so that each episode meets all its siblings.
    sees_skills: [B], whether the row's student saw skills.

  Returns:
    A prompt's int32 ids and a view for each row, in order.

  Raises:
    ValueError: unknown `kind`.
    SkillError: the teacher cannot show skills, or none of its skills to any row. That
      no episode is worth showing may happen in a step; a bank that never has anything
      to say is a mistake.
  """
  if kind not in CONTEXTS:
    raise ValueError(f'teacher context {kind!r}: must be one of {CONTEXTS}')
  groups = _groups(rows)
  prompts, views = [], []
  for row, sees in zip(rows, sees_skills, strict=True):
    others = _others(groups[row.group_id], row)
    ids, view = _prompt(kind, teacher, row, others, sees)
    ids = np.concatenate([ids, row.turn.prompt_ids[len(row.head.prompt_ids) :]])
    prompts.append(ids)
    # A prompt like the student's teaches nothing, whatever it was meant to show.
    same = np.array_equal(ids, row.turn.prompt_ids)
    views.append(SkillView((), view.left_out, 0) if same else view)
  if kind not in _BLOCKS:
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


def _groups(rows: Sequence[Row]) -> dict[int, dict[int, Trajectory]]:
  """The trajectories of each group by their ids."""
  out: dict[int, dict[int, Trajectory]] = {}
  for row in rows:
    out.setdefault(row.group_id, {})[row.trajectory_id] = row.trajectory
  return out


def _others(group: Mapping[int, Trajectory], row: Row) -> list[Trajectory]:
  """Lists the group's other trajectories, shortest first, then by member."""
  others = [t for identity, t in group.items() if identity != row.trajectory_id]
  return sorted(others, key=lambda t: (len(t.turns), t.member))


def _prompt(
  kind: str, teacher: TeacherContext, row: Row, others: _Others, sees: bool
) -> _Prompted:
  text = row.head.prompt_text
  if kind in _BLOCKS:
    return _first_that_fits(teacher, text, _BLOCKS[kind](row, others))
  ids, view = teacher.prompt(text, row.task)
  if kind == 'other_view' and sees and view.skill_ids:  # Else there is one view only.
    return teacher.plain(text), SkillView((PLAIN,), (), 0)
  return ids, view


def _first_that_fits(
  teacher: TeacherContext, text: str, blocks: Iterable[_Block]
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


def _solutions(row: Row, others: _Others) -> Iterator[_Block]:
  for trajectory in others:
    actions = _actions(trajectory)
    if trajectory.success and actions:
      block = '\n'.join(['this solved it:', *actions])
      yield (f'sibling/{trajectory.member}',), block


def _answers(row: Row, others: _Others) -> Iterator[_Block]:
  turns, following = row.trajectory.turns, row.turn_id + 1
  end = f'the end: {_ending(row.trajectory.outcome)}'
  answer = turns[following].observation.strip() if following < len(turns) else ''
  if answer:
    yield ('answer', 'outcome'), f'what came next:\n{answer}\n{end}'
  yield ('outcome',), end


def _contrasts(row: Row, others: _Others) -> Iterator[_Block]:
  for good in others:
    wanted = _actions(good)
    if not good.success or not wanted:
      continue
    for bad in others:
      # In the order played, each once: failures go round in circles.
      unwanted = dict.fromkeys(a for a in _actions(bad) if a not in wanted)
      if not bad.success and unwanted:
        block = '\n'.join(['do:', *wanted, 'avoid:', *unwanted])
        yield (f'do/{good.member}', f'avoid/{bad.member}'), block


def _actions(trajectory: Trajectory) -> list[str]:
  """Lists the admissible actions in order, each on a line."""
  played = (turn.action for turn in trajectory.turns if turn.admissible)
  lines = (' '.join(action.split()) for action in played)
  return [line for line in lines if line]


def _ending(outcome: Outcome) -> str:
  if outcome is Outcome.SUCCESS:
    return 'solved'
  return 'out of turns' if outcome is Outcome.MAX_TURNS else 'not solved'


_BLOCKS: dict[str, Callable[[Row, _Others], Iterator[_Block]]] = {
  'sibling': _solutions,
  'feedback': _answers,
  'contrast': _contrasts,
}
CONTEXTS = ('skills', 'other_view', *_BLOCKS)
