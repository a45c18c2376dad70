"""Rows and minibatches against loops that put every token where it belongs."""

import itertools

import numpy as np
import pytest

from sdar_jax import batching
from sdar_jax.envs.base import Task
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

_TASK = Task('t', 'kind', 'goal', {}, None)


def _turn(random, *, valid=True, reward=0.0):
  prompt = random.integers(1, 99, random.integers(3, 9)).astype(np.int32)
  response = random.integers(100, 199, random.integers(1, 5)).astype(np.int32)
  logprobs = -random.random(len(response)).astype(np.float32)
  return Turn(
    prompt_ids=prompt,
    response_ids=response,
    sampler_logprobs=logprobs,
    prompt_text='',
    observation='',
    response='',
    action='',
    valid=valid,
    admissible=True,
    reward=reward,
    stop_reason='stop',
  )


def _groups(random, fault=False):
  groups = []
  for group_id in range(3):
    members = []
    for member in range(2):
      turns = [_turn(random, valid=i != 1) for i in range(random.integers(1, 5))]
      turns[-1].reward = float(10 * (member == 0))
      bad = fault and group_id == 1 and member == 1
      outcome = Outcome.ENV_ERROR if bad else Outcome.SUCCESS
      members.append(Trajectory('t', 'kind', group_id, member, turns, outcome))
    groups.append(Group(group_id, _TASK, members))
  return groups


def test_scores_and_identity():
  groups = _groups(np.random.default_rng(0))
  rows = batching.rows(groups, invalid_penalty=0.25)
  arrays = batching.identities(rows)
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
  rows = batching.rows(_groups(np.random.default_rng(0), True), invalid_penalty=0.0)
  assert {row.group_id for row in rows} == {0, 2}


@pytest.mark.parametrize('minibatch_rows, microbatch_rows', [(4, 2), (6, 3), (64, 8)])
def test_every_sampled_id_is_trained_on_once_and_nothing_else(
  minibatch_rows, microbatch_rows
):
  random = np.random.default_rng(1)
  rows = batching.rows(_groups(random), invalid_penalty=0.1)
  teacher = [random.integers(1, 99, 12).astype(np.int32) for _ in rows]
  order = batching.permutation(len(rows), shuffle=True, seed=3, step=5)
  packed = batching.pack(
    rows,
    teacher,
    order,
    batching.Packing(
      kind='sorted',
      minibatch_rows=minibatch_rows,
      microbatch_rows=microbatch_rows,
      length_buckets=(8, 16),
      teacher_buckets=(16, 32),
    ),
  )
  seen = []
  for arrays in itertools.chain(*packed):
    longest = max(
      (len(rows[i].turn.prompt_ids) + len(rows[i].turn.response_ids))
      for i in arrays['row_index']
      if i >= 0
    )
    width = 8 if longest <= 8 else 16
    assert arrays['tokens'].shape == (microbatch_rows, width)
    for i, index in enumerate(arrays['row_index']):
      mask = arrays['response_mask'][i]
      if index < 0:
        assert not mask.any()
        continue
      turn = rows[index].turn
      seen.append(index)
      assert arrays['tokens'][i][mask].tolist() == turn.response_ids.tolist()
      start = len(turn.prompt_ids)
      assert arrays['tokens'][i][:start].tolist() == turn.prompt_ids.tolist()
      assert not mask[:start].any()
      at = np.flatnonzero(mask) + arrays['teacher_offset'][i]
      assert arrays['teacher_tokens'][i][at].tolist() == turn.response_ids.tolist()
      head = arrays['teacher_tokens'][i][: at[0]]
      assert head.tolist() == teacher[index].tolist()
      assert arrays['prompt_lengths'][i] == start
      assert arrays['turn_ids'][i] == rows[index].turn_id
      np.testing.assert_array_equal(
        arrays['sampler_logprobs'][i][mask], turn.sampler_logprobs
      )
  assert sorted(seen) == list(range(len(rows)))
  sizes = [sum(int((m['row_index'] >= 0).sum()) for m in part) for part in packed]
  assert max(sizes) - min(sizes) <= 1 and max(sizes) <= minibatch_rows
  assert [len(part) for part in packed] == [-(-n // microbatch_rows) for n in sizes]


def test_order_is_a_function_of_seed_and_step():
  def order(**kwargs):
    return batching.permutation(50, shuffle=True, **kwargs).tolist()

  assert order(seed=1, step=2) == order(seed=1, step=2)
  assert order(seed=1, step=2) != order(seed=1, step=3)
  assert order(seed=1, step=2) != order(seed=2, step=2)
  plain = batching.permutation(5, shuffle=False, seed=1, step=2)
  assert plain.tolist() == [0, 1, 2, 3, 4]


def test_a_row_that_is_too_long_names_the_key():
  with pytest.raises(ValueError, match=r'40 tokens exceeds config\.train\.length'):
    batching.bucket(40, (8, 16), 'train.length_buckets')


def test_missing_logprobs_are_not_filled_in():
  turn = _turn(np.random.default_rng(0))
  turn.sampler_logprobs = turn.sampler_logprobs[:-1]
  trajectory = Trajectory('t', 'kind', 0, 0, [turn], Outcome.SUCCESS)
  rows = batching.rows([Group(0, _TASK, [trajectory])], invalid_penalty=0.0)
  with pytest.raises(ValueError, match='log-probs'):
    batching.pack(
      rows,
      None,
      np.arange(1),
      batching.Packing(
        kind='sorted',
        minibatch_rows=2,
        microbatch_rows=2,
        length_buckets=(16,),
        teacher_buckets=(16,),
      ),
    )


def test_in_order_fills_one_minibatch_after_the_other():
  random = np.random.default_rng(2)
  rows = batching.rows(_groups(random), invalid_penalty=0.1)
  packed = batching.pack(
    rows,
    None,
    np.arange(len(rows)),
    batching.Packing(
      kind='in order',
      minibatch_rows=4,
      microbatch_rows=2,
      length_buckets=(16,),
      teacher_buckets=(32,),
    ),
  )
  parts = [[m['row_index'].tolist() for m in minibatch] for minibatch in packed]
  found = [i for minibatch in parts for microbatch in minibatch for i in microbatch]
  assert found[: len(rows)] == list(range(len(rows)))
  assert set(found[len(rows) :]) <= {-1}
  assert all(len(minibatch) == 2 for minibatch in parts[:-1])


def test_gather_and_scatter_put_values_to_the_tokens_that_they_are_of():
  random = np.random.default_rng(4)
  rows = batching.rows(_groups(random), invalid_penalty=0.1)
  order = batching.permutation(len(rows), shuffle=True, seed=1, step=2)
  sizes = {'minibatch_rows': 6, 'microbatch_rows': 4}
  packed = batching.pack(
    rows,
    None,
    order,
    batching.Packing(
      kind='sorted',
      length_buckets=(8, 16),
      teacher_buckets=(32,),
      **sizes,
    ),
  )
  microbatches = list(itertools.chain(*packed))
  width = max(len(row.turn.response_ids) for row in rows)
  got = batching.gather(microbatches, 'sampler_logprobs', len(rows), width)
  for row, values in zip(rows, got):
    size = len(row.turn.sampler_logprobs)
    assert values[:size].tolist() == row.turn.sampler_logprobs.tolist()
    assert not values[size:].any()
  assert batching.gather(microbatches, 'old_values', len(rows), width) is None
  values = {
    'tokens_of': got,
    'row': np.arange(1.0, len(rows) + 1),
    'scalar': np.float32(3),
  }
  for arrays, placed in zip(microbatches, batching.scatter(microbatches, values)):
    np.testing.assert_array_equal(placed['tokens_of'], arrays['sampler_logprobs'])
    there = arrays['row_index'] >= 0
    np.testing.assert_array_equal(placed['row'], (arrays['row_index'] + 1) * there)
    assert placed['scalar'] == 3
