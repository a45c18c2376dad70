"""Controls: whose knowledge a teacher is given in the place of its own."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skill_cases import HEAT_MUG
from teacher_cases import LOST, MIXED, WON
from teacher_cases import blocks as _blocks
from teacher_cases import rows as _rows
from teacher_cases import see as _see
from teacher_cases import teacher as _teacher

from sdar_jax.methods import hyperparameters
from sdar_jax.prompts import controls, lessons
from sdar_jax.prompts import teacher as teacher_lib
from sdar_jax.prompts.skills import NOTHING, SkillError

OTHER = HEAT_MUG | {'task_type': 'pick_cool_then_place_in_recep'}
PAIR = (MIXED, [(WON, ['open y', 'close y']), (LOST, ['push z', 'pull z'])])


def tasks_of(*metadata):
  """Tasks that differ in what retrieval looks at."""
  first = _rows(MIXED)[0].task
  return [
    dataclasses.replace(first, task_id=f'train {i}', metadata=kind)
    for i, kind in enumerate(metadata)
  ]


def test_controls_are_the_choices_of_the_config():
  assert hyperparameters.KEYS['context'].allowed == controls.CONTROLS
  with pytest.raises(ValueError, match="teacher control 'odd': must be one of"):
    _see('skills', _rows(MIXED), control='odd')


@pytest.mark.parametrize('kind', teacher_lib.CONTEXTS)
def test_none_is_the_student_s_own_prompt_and_a_lesson(kind):
  rows = _rows(MIXED, MIXED)
  for i, row in enumerate(rows):
    row.turn.prompt_ids = np.arange(3 + i, dtype=np.int32)
  prompts, views = _see(kind, rows, control='none')
  for ids, row in zip(prompts, rows, strict=True):
    np.testing.assert_array_equal(ids, row.turn.prompt_ids)
  assert teacher_lib.taught(views).all() and {view.tokens for view in views} == {0}


def test_another_task_s_skills_have_one_that_is_not_the_row_s():
  rows, teacher = _rows(MIXED), _teacher(kind='task')
  tasks = [rows[0].task, *tasks_of(HEAT_MUG, OTHER, HEAT_MUG)]
  _, own = _see('skills', rows, teacher)
  prompts, views = _see('skills', rows, teacher, control='other_task', tasks=tasks)
  want = teacher.prompt(rows[0].turn.prompt_text, tasks[2])
  np.testing.assert_array_equal(prompts[0], want[0])
  assert {*views[0].skill_ids} - {*own[0].skill_ids}
  assert all(view == want[1] for view in views)
  with pytest.raises(SkillError, match='saw nothing'):  # All tasks are of its kind.
    _see('skills', rows, teacher, control='other_task', tasks=tasks_of(HEAT_MUG))


def test_another_task_s_lesson_is_of_other_episodes_than_the_row_s():
  rows = _rows(*PAIR)
  for kind in ('sibling', 'right_hint', 'wrong_hint', 'contrast', 'feedback'):
    prompts, views = _see(kind, rows, control='other_task')
    for row, view, block in zip(rows, views, _blocks(prompts, rows), strict=True):
      if view.skill_ids:
        other = f'task {1 - row.group_id}/'
        assert all(name.startswith(other) for name in view.skill_ids)
        mine = [t.action for t in row.trajectory.turns]
        assert not {*block.split('\n')} & {*mine}
  alone = _rows(MIXED)
  assert _see('sibling', alone, control='other_task')[1] == [NOTHING] * len(alone)


def test_a_row_s_other_task_depends_on_tasks_alone():
  rows = _rows(MIXED, *[[(WON, [f'do {i}']), (WON, [f'be {i}'])] for i in range(5)])
  prompts, views = _see('sibling', rows, control='other_task')
  order = np.random.default_rng(0).permutation(len(rows))
  again, seen = _see('sibling', [rows[i] for i in order], control='other_task')
  for place, i in enumerate(order):
    np.testing.assert_array_equal(again[place], prompts[i])
    assert seen[place] == views[i]
  assert len({view.skill_ids[0].partition('/')[0] for view in views}) > 1


@pytest.mark.parametrize('kind', ['skills', 'sibling', 'feedback', 'contrast'])
def test_shuffled_words_are_the_same_words_and_as_many_tokens(kind):
  rows = _rows(*PAIR)
  prompts, views = _see(kind, rows)
  mixed, seen = _see(kind, rows, control='shuffled')
  changed = 0
  blocks = _blocks(prompts, rows), _blocks(mixed, rows)
  for before, after, view, other in zip(*blocks, views, seen, strict=True):
    if not other.skill_ids:
      assert after == ''
      continue
    assert other == view
    assert collections.Counter(after.split()) == collections.Counter(before.split())
    assert after != before and len(after) == len(before)
    changed += 1
  assert changed


@settings(max_examples=200, deadline=None)
@given(text=st.text('ab c\n', max_size=20), name=st.text(max_size=3))
def test_a_shuffle_is_of_equal_size_by_any_measure_or_none(text, name):
  size = lambda text: sum(len(word) ** 2 for word in text.split(' '))
  got = lessons.shuffled(text, name, size)
  assert got == lessons.shuffled(text, name, size)
  if got is None:
    return
  assert got != text and size(got) == size(text)
  assert sorted(got.split()) == sorted(text.split())


def test_a_text_of_one_word_cannot_be_shuffled():
  assert lessons.shuffled('one', 'task', len) is None
  assert lessons.shuffled('one one', 'task', len) is None


def test_two_contexts_teach_where_both_have_a_lesson():
  rows = _rows(MIXED, [(WON, ['a']), (WON, ['b'])])
  see = {'sees_skills': [False] * len(rows)}
  (right, wrong), views = teacher_lib.lessons_of(
    ('right_hint', 'wrong_hint'), _teacher(), rows, **see
  )
  kinds = [_see(kind, rows) for kind in ('right_hint', 'wrong_hint')]
  for got, (want, _) in zip((right, wrong), kinds, strict=True):
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
  both = [bool(a.skill_ids and b.skill_ids) for a, b in zip(kinds[0][1], kinds[1][1])]
  assert teacher_lib.taught(views).tolist() == both
  assert both == [i >= 4 and row.group_id == 0 for i, row in enumerate(rows)]
  one, alone = teacher_lib.lessons_of(('sibling',), _teacher(), rows, **see)
  assert len(one) == 1 and alone == _see('sibling', rows)[1]


@pytest.mark.parametrize('wrong', ['wrong_hint', 'mistake'])
def test_two_contexts_that_show_the_same_compare_nothing(wrong):
  long = (LOST, ['c', 'd', 'e'])  # The shortest is shown first.
  rows = _rows([long, (WON, ['a', 'b']), (LOST, ['a', 'b']), long])
  see = {'sees_skills': [False] * len(rows)}
  kinds = ('right_hint', wrong)
  (right, other), views = teacher_lib.lessons_of(kinds, _teacher(), rows, **see)
  differ = [not np.array_equal(a, b) for a, b in zip(right, other, strict=True)]
  shown = [bool(view.skill_ids) for view in _see('right_hint', rows)[1]]
  assert teacher_lib.taught(views).tolist() == [
    a and b for a, b in zip(differ, shown, strict=True)
  ]
  assert sum(shown) > teacher_lib.taught(views).sum() > 0
  _, own = teacher_lib.lessons_of(kinds, _teacher(), rows, control='none', **see)
  assert teacher_lib.taught(own).all()  # There they are alike on purpose.


def test_what_is_compared_is_worded_alike():
  rows = _rows([(LOST, ['a', 'b']), (WON, ['c']), (LOST, ['d'])])
  texts = {
    kind: _blocks(_see(kind, rows)[0], rows)
    for kind in ('right_hint', 'wrong_hint', 'mistake', 'observed', 'unobserved')
  }
  head = 'one way to play it:\n'
  assert texts['right_hint'] == [head + 'c'] * 2 + ['', head + 'c']
  assert texts['wrong_hint'] == [head + 'd'] * 3 + [head + 'a\nb']
  assert texts['mistake'] == [head + 'a\nb'] * 2 + [head + 'd'] * 2
  assert texts['observed'] == ['what came next:\nseen 0.1', '', '', '']
  assert texts['unobserved'] == [f'what came next:\n{lessons.UNSEEN}', '', '', '']
