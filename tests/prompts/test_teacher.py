"""What each kind of teacher sees: never a row's own episode, and only whole blocks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skill_cases import ByteChat, spell
from teacher_cases import BANK, LOST, MIXED, SLOW, WON
from teacher_cases import blocks as _blocks
from teacher_cases import rows as _rows
from teacher_cases import see as _see
from teacher_cases import teacher as _teacher

from sdar_jax.prompts import retrieval, skills
from sdar_jax.prompts import teacher as teacher_lib
from sdar_jax.prompts.skills import NOTHING, SkillError, SkillView
from sdar_jax.prompts.teacher import PLAIN


def test_skills_are_the_tasks():
  rows, teacher = _rows(MIXED, MIXED), _teacher()
  prompts, views = _see('skills', rows, teacher, sees_skills=[True] * len(rows))
  for ids, view, row in zip(prompts, views, rows, strict=True):
    want = teacher.prompt(row.turn.prompt_text, row.task)
    np.testing.assert_array_equal(ids, want[0])
    assert view == want[1] and 'plan_heat' in view.skill_ids


def test_the_other_view_is_the_one_that_the_student_had_not():
  rows, teacher = _rows(MIXED), _teacher()
  sees = [row.trajectory.member % 2 == 1 for row in rows]
  prompts, views = _see('other_view', rows, teacher, sees_skills=sees)
  assert True in sees and False in sees
  for ids, view, row, seen in zip(prompts, views, rows, sees, strict=True):
    skilled = teacher.prompt(row.turn.prompt_text, row.task)
    plain = ByteChat('S').render(row.turn.prompt_text), SkillView((PLAIN,), (), 0)
    want = plain if seen else skilled
    np.testing.assert_array_equal(ids, want[0])
    assert view == want[1]
  assert teacher_lib.taught(views).all()


@pytest.mark.parametrize('kind', ['skills', 'other_view'])
def test_a_teacher_that_sees_nothing_at_all_is_an_error(kind):
  rows = _rows(MIXED)  # 'goal' names no category of the bank.
  line = r"^the teacher saw nothing in any of 11 turns, .*retrieval='keywords'[^\n]*$"
  for seen in ([False] * len(rows), [True] * len(rows)):
    with pytest.raises(SkillError, match=line):
      _see(kind, rows, _teacher(kind='keywords'), seen)


def test_a_student_that_is_to_see_skills_and_sees_none_is_an_error():
  rows = _rows(MIXED)
  sees = [row.trajectory.member == 1 for row in rows]
  teacher = _teacher(kind='keywords')
  with pytest.raises(SkillError, match=r'^a student that .* saw nothing'):
    teacher_lib.student_views(teacher, rows, sees)
  nobody = teacher_lib.student_views(teacher, rows, [False] * len(rows))
  assert nobody == [NOTHING] * len(rows)


def test_one_task_with_skills_is_enough_and_only_its_rows_are_taught():
  rows = _rows(MIXED, [(WON, ['a'])])
  named = dataclasses.replace(rows[-1].task, goal='look at the mug')
  rows[-1] = dataclasses.replace(rows[-1], task=named)
  for kind in ('skills', 'other_view'):
    _, views = _see(kind, rows, _teacher(kind='keywords'))
    assert teacher_lib.taught(views).tolist() == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize('kind', ['skills', 'sibling', 'feedback', 'contrast'])
def test_a_prompt_that_the_student_saw_too_teaches_nothing(kind):
  """As of a student that sees skills, or where a template drops what is added."""
  rows = _rows(MIXED + ((SLOW, ['take x', 'go c']),))
  prompts, before = _see(kind, rows)
  assert teacher_lib.taught(before).all()
  for row, ids in zip(rows[:4], prompts):
    row.turn.prompt_ids = ids.copy()
  again, after = _see(kind, rows)
  for ids, same in zip(again, prompts, strict=True):
    np.testing.assert_array_equal(ids, same)
  assert teacher_lib.taught(after).tolist() == [False] * 4 + [True] * (len(rows) - 4)
  assert all(view.tokens == 0 for view in after[:4])


def test_a_template_without_a_system_message_leaves_its_teacher_no_way_to_speak():
  rows, chat = _rows(MIXED), _Deaf('S')
  retriever = retrieval.Retriever(BANK, 'task+object')
  teacher = skills.TeacherContext(retriever, chat, 'system', token_budget=10_000)
  for row in rows:
    row.turn.prompt_ids = chat.render(row.turn.prompt_text)
  with pytest.raises(SkillError, match="placement='system' has no effect"):
    _see('skills', rows, teacher)


class _Deaf(ByteChat):
  def render(self, user_text, system=None):
    return super().render(user_text)


def test_the_sibling_is_the_shortest_other_solution():
  rows = _rows(MIXED)
  prompts, views = _see('sibling', rows)
  second = ('sibling/2', 'this solved it:\nput x')
  third = ('sibling/3', 'this solved it:\ntake x\nput x now')
  for row, view, block in zip(rows, views, _blocks(prompts, rows), strict=True):
    name, text = third if row.trajectory.member == 2 else second
    assert (block, view) == (text, SkillView((name,), (), len(text) + 2))


def test_siblings_are_of_the_same_group():
  rows = _rows([(LOST, ['a']), (LOST, ['b'])], [(WON, ['c']), (LOST, ['d'])])
  prompts, views = _see('sibling', rows)
  assert views[:3] == [NOTHING] * 3  # The only solution is not its own sibling.
  assert _blocks(prompts, rows) == ['', '', '', 'this solved it:\nc']
  assert teacher_lib.taught(views).tolist() == [False, False, False, True]


def test_an_episode_in_which_nothing_worked_is_no_example():
  rows = _rows([(LOST, ['a']), (WON, ['-b', ' ']), (WON, ['c', 'd', 'e'])])
  _, views = _see('sibling', rows)
  assert [view.skill_ids for view in views[:3]] == [('sibling/2',)] * 3


def test_a_sibling_that_is_too_long_gives_way():
  rows = _rows([(LOST, ['a']), (WON, ['b' * 50]), (WON, ['c', 'd'])])
  need = len('this solved it:\nc\nd') + 2
  prompts, views = _see('sibling', rows, _teacher(budget=need))
  assert views[0] == SkillView(('sibling/2',), ('sibling/1',), need)
  assert _blocks(prompts, rows)[0] == 'this solved it:\nc\nd'
  prompts, views = _see('sibling', rows, _teacher(budget=need - 1))
  assert views[0] == SkillView((), ('sibling/1', 'sibling/2'), 0)
  assert _blocks(prompts, rows)[0] == ''
  assert not teacher_lib.taught(views).any()


@pytest.mark.parametrize(
  'outcome, end', [(WON, 'solved'), (LOST, 'not solved'), (SLOW, 'out of turns')]
)
def test_feedback_is_the_worlds_answer_and_the_end(outcome, end):
  rows = _rows([(WON, ['x']), (outcome, ['a', 'b', 'c'])])
  prompts, views = _see('feedback', rows)
  assert _blocks(prompts, rows)[1:] == [
    f'what came next:\nseen 1.1\nthe end: {end}',
    f'what came next:\nseen 1.2\nthe end: {end}',
    f'the end: {end}',
  ]
  names = [view.skill_ids for view in views[1:]]
  assert names == [('answer', 'outcome'), ('answer', 'outcome'), ('outcome',)]
  assert _blocks(prompts, rows)[0] == 'the end: solved'


def test_a_long_answer_leaves_the_end():
  rows = _rows([(WON, ['a', 'b', 'c'])])
  rows[0].trajectory.turns[1].observation = '\n' + 'long ' * 10
  rows[0].trajectory.turns[2].observation = ' '
  prompts, views = _see('feedback', rows)
  answer = 'what came next:\n' + ('long ' * 10).strip() + '\nthe end: solved'
  assert _blocks(prompts, rows) == [answer, 'the end: solved', 'the end: solved']
  assert views[1].skill_ids == ('outcome',) and views[1].left_out == ()
  prompts, views = _see('feedback', rows, _teacher(budget=len(answer) + 1))
  assert _blocks(prompts, rows) == ['the end: solved'] * 3
  assert views[0] == SkillView(('outcome',), ('answer',), len('the end: solved') + 2)


def test_contrast_is_what_solved_it_against_what_did_not():
  rows = _rows(MIXED + ((SLOW, ['take x', 'go c']),))
  prompts, views = _see('contrast', rows)
  blocks = dict(zip([row.trajectory.member for row in rows], _blocks(prompts, rows)))
  assert blocks == {
    0: 'do:\nput x\navoid:\ntake x\ngo c',
    1: 'do:\nput x\navoid:\ntake x\ngo c',
    2: 'do:\ntake x\nput x now\navoid:\ngo c',  # 'take x' is among the right ones.
    3: 'do:\nput x\navoid:\ntake x\ngo c',
    4: 'do:\nput x\navoid:\ngo a\ngo b',  # Once each, without what did nothing.
  }
  assert views[0].skill_ids == ('do/2', 'avoid/4')
  assert views[-1].skill_ids == ('do/2', 'avoid/0')
  assert all(
    view.tokens == len(b) + 2 for view, b in zip(views, _blocks(prompts, rows))
  )


@pytest.mark.parametrize(
  'members',
  [
    [(WON, ['a']), (WON, ['b']), (WON, ['c'])],
    [(LOST, ['a']), (LOST, ['b']), (SLOW, ['c'])],
    [(WON, ['a']), (LOST, ['b'])],  # Either lacks another of its own kind.
    [(WON, ['a', 'b']), (WON, ['b', 'a']), (LOST, ['b'])],  # Nothing to avoid.
    [(WON, ['-a']), (WON, ['-a']), (LOST, ['b'])],  # Nothing to do.
  ],
)
def test_no_contrast_without_both(members):
  rows = _rows(members, [(WON, ['x']), (LOST, ['y'])])
  prompts, views = _see('contrast', rows)
  assert views == [NOTHING] * len(rows)
  assert _blocks(prompts, rows) == [''] * len(rows)


def test_the_only_solution_of_a_group_is_not_taught_by_itself():
  rows = _rows([(WON, ['a']), (LOST, ['b']), (LOST, ['c'])])
  _, views = _see('contrast', rows)
  assert [view.skill_ids for view in views] == [
    (),
    ('do/0', 'avoid/2'),
    ('do/0', 'avoid/1'),
  ]


def test_a_contrast_that_is_too_long_gives_way():
  rows = _rows([(WON, ['a']), (WON, ['b']), (LOST, ['c' * 50]), (LOST, ['d', 'e'])])
  need = len('do:\na\navoid:\nd\ne') + 2
  _, views = _see('contrast', rows, _teacher(budget=need))
  assert views[1] == SkillView(('do/0', 'avoid/3'), ('avoid/2',), need)
  _, views = _see('contrast', rows, _teacher(budget=need - 1))
  assert views[1] == SkillView((), ('do/0', 'avoid/2', 'avoid/3'), 0)


_actions = st.lists(st.text('ab -\n\x01', max_size=6), min_size=1, max_size=4)
_members = st.lists(
  st.tuples(st.sampled_from((WON, LOST, SLOW)), _actions), min_size=1, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(
  kind=st.sampled_from(teacher_lib.CONTEXTS),
  groups=st.lists(_members, min_size=1, max_size=2),
  budget=st.integers(120, 200) | st.integers(30, 60),
  placement=st.sampled_from(skills.PLACEMENTS),
)
def test_wild_groups(kind, groups, budget, placement):
  """Nobody is shown its own episode; what is shown fits, and costs what is said."""
  rows, teacher = _rows(*groups), _teacher(budget, placement=placement)
  sees = [row.trajectory.member % 2 == 1 for row in rows]
  try:
    prompts, views = _see(kind, rows, teacher, sees_skills=sees)
  except SkillError:
    assert kind in ('skills', 'other_view') and budget < 120
    return
  assert len(prompts) == len(views) == len(rows)
  for ids, view, row in zip(prompts, views, rows, strict=True):
    plain = ByteChat('S').render(row.turn.prompt_text)
    plain = row.turn.prompt_ids if kind == 'none' else plain
    assert len(ids) - len(plain) == view.tokens <= budget
    if view.tokens == 0:
      np.testing.assert_array_equal(ids, plain)
    members = groups[row.group_id]
    for name in view.skill_ids:
      role, _, number = name.partition('/')
      if number:
        assert int(number) != row.trajectory.member
        assert (members[int(number)][0] is WON) == (role != 'avoid')
    if kind == 'sibling' and view.skill_ids:
      chosen = int(view.skill_ids[0].partition('/')[2])
      rivals = [
        (len(actions), member)
        for member, (outcome, actions) in enumerate(members)
        if outcome is WON and member != row.trajectory.member
      ]
      names = {*view.skill_ids, *view.left_out}
      better = [r for r in rivals if r < (len(members[chosen][1]), chosen)]
      for _, member in better:  # Passed over for its length, or it has no actions.
        empty = not any(a.strip() and a[0] != '-' for a in members[member][1])
        assert empty or f'sibling/{member}' in names


def test_wrong_calls():
  rows = _rows(MIXED)
  with pytest.raises(ValueError, match=r"teacher context 'hint': must be one of \('sk"):
    _see('hint', rows)
  with pytest.raises(ValueError, match='zip'):
    _see('skills', rows, sees_skills=[True])
  assert teacher_lib.CONTEXTS == (
    'skills',
    'other_view',
    'sibling',
    'feedback',
    'contrast',
    'observed',
    'unobserved',
    'right_hint',
    'wrong_hint',
    'mistake',
    'none',
  )


def test_taught():
  views = [NOTHING, SkillView(('a',), (), 3), SkillView((), ('a',), 0)]
  out = teacher_lib.taught(views)
  assert out.dtype == bool and out.tolist() == [False, True, False]
  assert teacher_lib.taught([]).shape == (0,)


def test_students_views_are_what_rollout_recorded():
  rows = _rows(MIXED)
  rows[1].turn.skills, rows[1].turn.skill_tokens = ('a', 'b'), 7
  sees = [row is rows[1] for row in rows]
  views = teacher_lib.student_views(_teacher(), rows, sees)
  assert views[1] == SkillView(('a', 'b'), (), 7)
  assert set(views[:1] + views[2:]) == {NOTHING}


@pytest.mark.parametrize('kind', ['skills', 'sibling', 'feedback'])
def test_in_a_conversation_only_the_head_differs(kind):
  """What is shown stands where it began; what was said since follows as it was."""
  rows, teacher = _rows(MIXED, MIXED), _teacher()
  plain, _ = _see(kind, rows, teacher)
  talks = []
  for row in rows:
    ids = np.arange(10 + row.turn_id, dtype=np.int32) + 100
    turn = dataclasses.replace(row.turn, goes_on=row.turn_id in (1, 2), prompt_ids=ids)
    head = talks[-1].head if turn.goes_on else turn
    talks.append(dataclasses.replace(row, turn=turn, head=head))
  prompts, views = _see(kind, talks, teacher)
  assert any(view.skill_ids for view in views)
  began = None
  for row, want, ids in zip(talks, plain, prompts, strict=True):
    began = began if row.turn.goes_on else want
    if kind == 'feedback' and row.turn.goes_on:  # The world's answer is the turn's own.
      answered = spell(ids[: len(ids) - row.turn_id])
      assert row.head.prompt_text in answered and 'the end:' in answered
    else:
      shown = want if kind == 'feedback' else began
      assert ids[: len(shown)].tolist() == shown.tolist()
    tail = row.turn.prompt_ids[len(row.head.prompt_ids) :]
    assert ids[len(ids) - len(tail) :].tolist() == tail.tolist()
