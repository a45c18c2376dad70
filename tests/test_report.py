"""What a step's report says, against figures counted by hand."""

import numpy as np

from sdar_jax import batching, report
from sdar_jax.envs.base import Task
from sdar_jax.skills import NOTHING, SkillView
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn


def _turn(size, reward=0.0, **changes):
  values = {
    'prompt_text': '',
    'prompt_ids': np.arange(3, dtype=np.int32),
    'response_ids': np.arange(1, size + 1, dtype=np.int32),
    'sampler_logprobs': np.full(size, -0.5, np.float32),
    'observation': '',
    'response': '',
    'action': '',
    'valid': True,
    'admissible': True,
    'reward': reward,
    'stop_reason': 'stop',
  }
  return Turn(**(values | changes))


def _groups():
  won = Trajectory('a', 'k', 0, 0, [_turn(2), _turn(4, 10.0)], Outcome.SUCCESS)
  lost = Trajectory('a', 'k', 0, 1, [_turn(3, valid=False)], Outcome.MAX_TURNS)
  same = [
    Trajectory('b', 'k', 1, i, [_turn(1, admissible=False)], Outcome.FAILURE)
    for i in (0, 1)
  ]
  task = Task('a', 'k', '', {}, None)
  return [Group(0, task, [won, lost]), Group(1, task, same)]


def test_episodes_are_counted():
  got = report.rollout_metrics(_groups())
  assert got['rollout/success_rate'] == 0.25
  assert got['rollout/return_mean'] == 2.5
  assert got['rollout/turns_mean'] == 1.25
  assert got['rollout/valid_action_rate'] == 0.8
  assert got['rollout/admissible_action_rate'] == 0.6
  assert got['rollout/zero_variance_groups'] == 0.5
  assert got['rollout/response_tokens_mean'] == 11 / 5
  assert got['rollout/rows'] == 5


def _view(*ids):
  return SkillView(ids, (), 7 * len(ids))


def test_skills_are_counted_by_row_and_by_episode():
  rows = batching.rows(_groups(), invalid_penalty=0.1)
  views = [_view('s', 't'), _view('s'), _view('t'), NOTHING, _view('u')]
  own = [NOTHING, _view('own'), NOTHING, NOTHING, NOTHING]
  assert report.skills_seen(views) == {'s': 2, 't': 2, 'u': 1}
  assert report.skill_metrics(views)['train/teacher_skill_tokens_min'] == 0
  shown = report.shown_by_episode(rows, views, own)
  assert shown == [
    (('s', 't', 'own'), True),
    (('t',), False),
    ((), False),
    (('u',), False),
  ]


def test_token_records_are_the_rows_own_values():
  rows = batching.rows(_groups(), invalid_penalty=0.1)
  views = [_view('s')] * len(rows)
  packed = batching.pack(
    rows,
    [np.arange(5, dtype=np.int32)] * len(rows),
    order=np.array([4, 2, 0, 1, 3]),
    packing='sorted',
    minibatch_rows=3,
    microbatch_rows=2,
    length_buckets=(8,),
    teacher_buckets=(16,),
  )
  microbatches = [m for minibatch in packed for m in minibatch]
  width = max(len(row.turn.response_ids) for row in rows)
  values = {
    name: np.arange(len(rows) * width, dtype=np.float32).reshape(-1, width) + shift
    for shift, name in enumerate(('advantages', 'old_logprobs', 'teacher_logprobs'))
  }
  values['gate'], values['teaching'] = values['advantages'] / 100, np.arange(5.0)
  placed = batching.scatter(microbatches, values)
  scores = [{**m, **p} for m, p in zip(microbatches, placed, strict=True)]
  records = report.token_records(rows, scores, views, count=3)
  assert len(records) == 3
  for index, record in enumerate(records):
    row, size = rows[index], len(rows[index].turn.response_ids)
    assert record['trajectory_id'] == row.trajectory_id
    assert record['turn_id'] == row.turn_id
    assert record['advantages'] == values['advantages'][index, :size].tolist()
    assert record['gate'] == values['gate'][index, :size].tolist()
    assert record['gap'] == [1.0] * size
    assert record['teaching'] == index
    assert record['teacher_skills'] == ['s']
