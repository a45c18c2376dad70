"""Rows and sheets against loops that put every token where it belongs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.batching import blanks, packing
from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs.base import Task
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

_TASK = Task('t', 'kind', 'goal', {}, None)


def _turn(prompt, response, *, valid=True, reward=0.0):
  return Turn(
    prompt_ids=np.asarray(prompt, np.int32),
    response_ids=np.asarray(response, np.int32),
    sampler_logprobs=-np.arange(len(response), dtype=np.float32),
    prompt_text='',
    observation='',
    response='',
    action='',
    valid=valid,
    admissible=True,
    reward=reward,
    stop_reason='stop',
  )


def _groups(random, fault=False, extends=0.0):
  """Three groups of two; a prompt goes on from the turn before with some chance."""
  groups = []
  for group_id in range(3):
    members = []
    for member in range(2):
      turns = []
      for i in range(random.integers(1, 5)):
        prompt = random.integers(1, 99, random.integers(3, 9))
        if turns and random.random() < extends:
          last = turns[-1]
          prompt = [*last.prompt_ids, *last.response_ids, *prompt[:2]]
        response = random.integers(100, 199, random.integers(1, 5))
        turns.append(_turn(prompt, response, valid=i != 1))
      turns[-1].reward = float(10 * (member == 0))
      bad = fault and group_id == 1 and member == 1
      outcome = Outcome.ENV_ERROR if bad else Outcome.SUCCESS
      members.append(Trajectory('t', 'kind', group_id, member, turns, outcome))
    groups.append(Group(group_id, _TASK, members))
  return groups


def _rows(random, **kwargs):
  return rows_lib.rows(_groups(random, **kwargs), invalid_penalty=0.1)


def _packing(**changes):
  settings = {
    'kind': 'sorted',
    'minibatch_rows': 6,
    'microbatch_rows': 4,
    'length_buckets': (8, 16, 64),
    'teacher_buckets': (16, 64),
    'response_tokens': 5,
  }
  return packing.Packing(**settings | changes)


def _student(rows, layout='turns'):
  return rows_lib.make_sequences(rows, [row.turn.prompt_ids for row in rows], layout)


def _said(sheet, tokens='tokens', places='places'):
  """Row -> (what stands before its response in its sequence, the response)."""
  lanes, out = sheet[places].shape[0], {}
  states = sheet[tokens].reshape(lanes, -1)
  per = len(sheet['row_index']) // lanes
  width = sheet[tokens].shape[1]
  for lane in range(lanes):
    place = 0
    for slot in range(lane * per, (lane + 1) * per):
      size = int(sheet['response_mask'][slot].sum())
      if sheet['row_index'][slot] < 0:
        assert not size
        continue
      at = sheet[places][lane, place : place + size]
      start = at[0] // width * width
      before = states[lane, start : at[0] + 1].tolist()
      read = states[lane, at + 1].tolist()
      assert read == sheet['targets'][lane, place : place + size].tolist()
      assert np.diff(at).tolist() == [1] * (size - 1)
      out[int(sheet['row_index'][slot])] = before, read
      place += size
  return out


def test_scores_and_identity():
  groups = _groups(np.random.default_rng(0))
  rows = rows_lib.rows(groups, invalid_penalty=0.25)
  arrays = rows_lib.identities(rows)
  index = 0
  for group in groups:
    for trajectory in group.trajectories:
      for turn_id, turn in enumerate(trajectory.turns):
        penalty = 0.0 if turn.valid else 0.25
        assert arrays['scores'][index] == 10 * (trajectory.member == 0) - penalty
        assert arrays['group_ids'][index] == group.group_id
        assert arrays['trajectory_ids'][index] == 2 * group.group_id + trajectory.member
        assert rows[index].turn_id == turn_id
        index += 1
  assert index == len(rows)


def test_a_group_with_a_fault_is_left_out_whole():
  groups = _groups(np.random.default_rng(0), fault=True)
  rows = rows_lib.rows(groups, invalid_penalty=0.0)
  assert {row.group_id for row in rows} == {0, 2}


@settings(deadline=None, max_examples=60)
@given(
  seed=st.integers(0, 99),
  layout=st.sampled_from(rows_lib.LAYOUTS),
  kind=st.sampled_from(('sorted', 'in order')),
  lanes=st.sampled_from((1, 2, 4)),
  minibatch_rows=st.integers(1, 30),
)
def test_every_sampled_id_is_trained_on_once_after_its_own_prompt(
  seed, layout, kind, lanes, minibatch_rows
):
  """In student's and teacher's sheets, whatever the layout, order and lanes."""
  random = np.random.default_rng(seed)
  rows = _rows(random, extends=0.7)
  student = _student(rows, layout)
  theirs = [
    np.concatenate([[7, 8, 9], row.turn.prompt_ids]).astype(np.int32) for row in rows
  ]
  teacher = rows_lib.make_sequences(rows, theirs, layout, within=student)
  how = _packing(
    kind=kind,
    lanes=lanes,
    layout=layout,
    sequence_rows=4 if layout == 'conversation' else 1,
    minibatch_rows=minibatch_rows,
  )
  order = random.permutation(len(student))
  batch = packing.minibatches(rows, student, order, how, teacher)
  found, taught = [], []
  for sheet in itertools.chain(*batch):
    longest = max(len(student[i].ids) for i in _sequences_of(sheet, student))
    assert sheet['tokens'].shape == (4, next(b for b in (8, 16, 64) if b >= longest))
    assert sheet['places'].shape[0] == lanes
    found += _said(sheet).items()
    taught += _said(sheet, 'teacher_tokens', 'teacher_places').items()
  for sheet in packing.teacher_sheets(rows, teacher, how):
    taught += _said(sheet).items()
  assert sorted(index for index, _ in found) == list(range(len(rows)))
  assert sorted(index for index, _ in taught) == sorted(2 * list(range(len(rows))))
  for index, (before, read) in found:
    assert before == rows[index].turn.prompt_ids.tolist()
    assert read == rows[index].turn.response_ids.tolist()
  for index, (before, read) in taught:
    assert before == theirs[index].tolist()
    assert read == rows[index].turn.response_ids.tolist()


def _sequences_of(sheet, student):
  there = set(sheet['row_index'].tolist())
  return [i for i, s in enumerate(student) if there & set(s.rows)]


@pytest.mark.parametrize('minibatch_rows', [4, 6, 64])
def test_rows_are_dealt_evenly_over_the_fewest_minibatches(minibatch_rows):
  rows = _rows(np.random.default_rng(1))
  how = _packing(minibatch_rows=minibatch_rows)
  batch = packing.minibatches(rows, _student(rows), np.arange(len(rows)), how)
  sizes = [sum(int((m['row_index'] >= 0).sum()) for m in part) for part in batch]
  assert max(sizes) - min(sizes) <= 1 and max(sizes) <= minibatch_rows
  assert len(batch) == -(-len(rows) // minibatch_rows)
  assert [len(part) for part in batch] == [-(-n // 4) for n in sizes]
  edges = [part[0]['row_index'] for part in batch]
  first = np.array_split(np.arange(len(rows)), len(batch))
  for found, part in zip(edges, first, strict=True):
    assert set(found[found >= 0]) <= set(part)


def test_a_conversation_is_one_sequence_until_a_prompt_begins_anew():
  a = _turn([1, 2], [101])
  b = _turn([1, 2, 101, 3], [102, 103])
  c = _turn([1, 2, 101, 3, 102, 9], [104])  # Not what was sampled.
  d = _turn([1, 2, 101, 3, 102, 9, 104, 4], [105])
  other = _turn([1, 2, 101, 3, 102, 9, 104, 4, 105, 5], [106])
  trajectories = [
    Trajectory('t', 'kind', 0, i, turns, Outcome.SUCCESS)
    for i, turns in enumerate(([a, b, c, d], [other]))
  ]
  rows = rows_lib.rows([Group(0, _TASK, trajectories)], invalid_penalty=0.0)
  found = _student(rows, 'conversation')
  assert [s.rows for s in found] == [(0, 1), (2, 3), (4,)]
  assert [s.starts for s in found] == [(2, 4), (6, 8), (10,)]
  assert found[0].ids.tolist() == [1, 2, 101, 3, 102, 103]
  assert [s.rows for s in _student(rows)] == [(i,) for i in range(5)]
  theirs = [np.concatenate([[7], row.turn.prompt_ids]) for row in rows]
  assert [
    s.rows for s in rows_lib.make_sequences(rows, theirs, 'conversation', found)
  ] == [
    (0, 1),
    (2, 3),
    (4,),
  ]
  theirs[1] = np.concatenate([[8], rows[1].turn.prompt_ids])
  split = rows_lib.make_sequences(rows, theirs, 'conversation', found)
  assert [s.rows for s in split] == [(0,), (1,), (2, 3), (4,)]
  with pytest.raises(ValueError, match='row 0 has an empty prompt'):
    rows_lib.make_sequences(rows, [[]] * 5, 'turns')
  with pytest.raises(ValueError, match="layout 'chat': must be one of"):
    rows_lib.make_sequences(rows, theirs, 'chat')


def _order(seed, step, shuffle=True):
  """Rows in the order in which minibatches of one row each come."""
  rows = _rows(np.random.default_rng(1))
  how = _packing(minibatch_rows=1, microbatch_rows=1, shuffle=shuffle, seed=seed)
  batch, privileged = packing.pack(rows, (), how, step=step, compares=False)
  assert privileged == []
  return [int(sheet['row_index'][0]) for (sheet,) in batch]


def test_order_is_a_function_of_seed_and_step():
  assert _order(1, 2) == _order(1, 2)
  assert _order(1, 2) != _order(1, 3) and _order(1, 2) != _order(2, 2)
  assert _order(1, 2, shuffle=False) == sorted(_order(1, 2))


@pytest.mark.parametrize('compares', [False, True])
def test_a_step_has_its_teacher_where_it_is_read(compares):
  rows = _rows(np.random.default_rng(1))
  prompts = [np.concatenate([[7], row.turn.prompt_ids]) for row in rows]
  batch, privileged = packing.pack(
    rows, [prompts], _packing(), step=0, compares=compares
  )
  assert all(('teacher_tokens' in m) == compares for m in itertools.chain(*batch))
  found = {k: v for sheet in privileged for k, v in _said(sheet).items()}
  assert found.keys() == set(range(len(rows)))
  assert all(before[0] == 7 for before, _ in found.values())


def test_a_row_that_is_too_long_names_the_key():
  with pytest.raises(ValueError, match=r'40 tokens exceeds config\.train\.length'):
    packing.bucket(40, (8, 16), 'train.length_buckets')
  rows = _rows(np.random.default_rng(0))
  with pytest.raises(ValueError, match=r'exceeds config\.rollout\.max_response_tokens'):
    packing.teacher_sheets(rows, _student(rows), _packing(response_tokens=2))


def test_missing_logprobs_are_not_filled_in():
  turn = _turn([1, 2], [3, 4])
  turn.sampler_logprobs = turn.sampler_logprobs[:-1]
  trajectory = Trajectory('t', 'kind', 0, 0, [turn], Outcome.SUCCESS)
  rows = rows_lib.rows([Group(0, _TASK, [trajectory])], invalid_penalty=0.0)
  with pytest.raises(ValueError, match='2 response ids but 1 log-probs'):
    rows_lib.sampler_logprobs(rows)


def test_in_order_fills_one_minibatch_after_the_other():
  rows = _rows(np.random.default_rng(2))
  how = _packing(kind='in order', minibatch_rows=4, microbatch_rows=2)
  batch = packing.minibatches(rows, _student(rows), np.arange(len(rows)), how)
  parts = [[m['row_index'].tolist() for m in minibatch] for minibatch in batch]
  found = [i for minibatch in parts for microbatch in minibatch for i in microbatch]
  assert found[: len(rows)] == list(range(len(rows)))
  assert set(found[len(rows) :]) <= {-1}
  assert all(len(minibatch) == 2 for minibatch in parts[:-1])


@pytest.mark.parametrize('layout', rows_lib.LAYOUTS)
def test_gather_and_scatter_put_values_to_the_tokens_that_they_are_of(layout):
  rows = _rows(np.random.default_rng(4), extends=0.7)
  student = _student(rows, layout)
  how = _packing(layout=layout, sequence_rows=4, lanes=2)
  order = np.random.default_rng(1).permutation(len(student))
  sheets = list(itertools.chain(*packing.minibatches(rows, student, order, how)))
  logprobs = rows_lib.sampler_logprobs(rows)
  for row, values in zip(rows, logprobs, strict=True):
    size = len(row.turn.sampler_logprobs)
    assert values[:size].tolist() == row.turn.sampler_logprobs.tolist()
    assert not values[size:].any()
  values = {
    'tokens_of': logprobs - 1,
    'row': np.arange(1.0, len(rows) + 1),
    'scalar': np.float32(3),
  }
  placed = [rows_lib.scatter(sheet, values) for sheet in sheets]
  for sheet, found in zip(sheets, placed, strict=True):
    there = sheet['row_index'] >= 0
    np.testing.assert_array_equal(found['row'], (sheet['row_index'] + 1) * there)
    assert found['scalar'] == 3
    for slot in np.flatnonzero(there):
      turn = rows[sheet['row_index'][slot]].turn
      want = np.zeros(5)
      want[: len(turn.response_ids)] = turn.sampler_logprobs - 1
      assert found['tokens_of'][slot].tolist() == want.tolist()
    assert not found['tokens_of'][~there].any()
  scores = [{'tokens_of': one['tokens_of'] + 9} for one in placed]
  width = logprobs.shape[1]
  (back,) = rows_lib.gather(sheets, scores, len(rows), width).values()
  mask = np.arange(width) < np.array([[len(r.turn.response_ids)] for r in rows])
  np.testing.assert_array_equal(back, np.where(mask, logprobs + 8, 0))


def test_the_head_runs_on_a_quarter_where_that_is_enough():
  turns = [_turn(range(1, 61), [101, 102]) for _ in range(4)]
  for size, share in ((2, 4), (5, 4), (17, 1)):
    turns[0] = _turn(range(1, 61 - size), range(100, 100 + size))
    turns[1] = _turn([1, 2], range(100, 100 + 3 * size))
    trajectory = Trajectory('t', 'kind', 0, 0, turns, Outcome.SUCCESS)
    rows = rows_lib.rows([Group(0, _TASK, [trajectory])], invalid_penalty=0.0)
    how = _packing(response_tokens=60)
    (sheet,) = packing.teacher_sheets(rows, _student(rows), how)
    assert sheet['tokens'].shape == (4, 64)
    assert sheet['places'].shape == (1, 256 // share)


@pytest.mark.parametrize('compares', [False, True])
@pytest.mark.parametrize('layout', rows_lib.LAYOUTS)
def test_there_is_a_blank_of_every_shape(layout, compares):
  how = _packing(layout=layout, lanes=2, sequence_rows=4 if layout != 'turns' else 1)
  shapes = lambda sheets: {
    tuple((name, a.shape, a.dtype.name) for name, a in sorted(one.items()))
    for one in sheets
  }
  known, found = [shapes(s) for s in blanks.blanks(how, compares=compares)], set()
  for seed in range(30):
    rows = _rows(np.random.default_rng(seed), extends=0.5)
    more = np.full(seed, 7)  # Of the prompt; several buckets are met.
    prompts = [np.concatenate([more, row.turn.prompt_ids]) for row in rows]
    batch, privileged = packing.pack(rows, [prompts], how, step=0, compares=compares)
    student, teacher = shapes(itertools.chain(*batch)), shapes(privileged)
    found |= student | teacher
    assert student <= known[0] and teacher <= known[1]
  assert len(found) >= 4  # Several buckets and shares were met.
  blank = itertools.chain(*blanks.blanks(how, compares=compares))
  assert all((one['row_index'] < 0).all() for one in blank)


def test_two_contexts_share_sheets_and_keep_apart():
  """A number that each prompt and row decide arrives at its context and row."""
  rows = _rows(np.random.default_rng(1))
  contexts = [
    [np.concatenate([[first] * more, row.turn.prompt_ids]) for row in rows]
    for first, more in ((7, 1), (9, 3))
  ]
  how = _packing()
  batch, both = packing.pack(rows, contexts, how, step=0, compares=False)
  _, one = packing.pack(rows, contexts[:1], how, step=0, compares=False)
  assert len(one) < len(both) <= 2 * len(one)
  found = {k: v[0] for sheet in both for k, v in _said(sheet).items()}
  assert [found[i][0] for i in range(2 * len(rows))] == [7] * len(rows) + [9] * len(
    rows
  )
  score = lambda sheet, name: {
    name: sheet['row_index'][:, None] + sheet['response_mask']
  }
  student = [*itertools.chain(*batch)]
  sides = [
    (sheets, [score(sheet, name) for sheet in sheets])
    for sheets, name in ((student, 'old_logprobs'), (both, 'teacher_logprobs'))
  ]
  sampled = np.zeros((len(rows), 4), np.float32)
  got = rows_lib.gather_step(*sides, ('a', 'b'), sampled)
  assert got['sampler_logprobs'] is sampled
  mask = np.zeros((len(rows), 4), bool)
  for i, row in enumerate(rows):
    mask[i, : len(row.turn.response_ids)] = True
  numbers = np.arange(len(rows))[:, None] + 1
  np.testing.assert_array_equal(got['old_logprobs'], np.where(mask, numbers, 0))
  np.testing.assert_array_equal(got['a'], np.where(mask, numbers, 0))
  np.testing.assert_array_equal(got['b'], np.where(mask, numbers + len(rows), 0))


def test_a_teacher_that_is_not_scored_apart_has_its_student_s_scores():
  rows = _rows(np.random.default_rng(1))
  prompts = [[row.turn.prompt_ids for row in rows]]
  batch, privileged = packing.pack(
    rows, prompts, _packing(), step=0, compares=False, scores=False
  )
  assert privileged == []
  sheets = [*itertools.chain(*batch)]
  scores = [{'old_logprobs': -1.0 * sheet['response_mask']} for sheet in sheets]
  sampled = np.ones((len(rows), 4), np.float32)
  got = rows_lib.gather_step((sheets, scores), ([], []), ('a', 'b'), sampled)
  assert not (got['old_logprobs'] == sampled).any()
  for name in ('a', 'b'):
    np.testing.assert_array_equal(got[name], got['old_logprobs'])
  unscored = (sheets, [{} for _ in sheets])
  got = rows_lib.gather_step(unscored, ([], []), ('a',), sampled)
  assert got['old_logprobs'] is got['a'] is sampled
