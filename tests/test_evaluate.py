"""Panels, and reports against counts by hand."""

import dataclasses
import json

import fakes
import numpy as np
import pytest
from scipy import stats

from sdar_jax import evaluate
from sdar_jax.trajectory import Outcome, Trajectory


class _Tasks(list):
  digest = 'abc'


class _World(fakes.World):
  def __init__(self, tasks=None):
    self._tasks = _Tasks(fakes.tasks() if tasks is None else tasks)

  def tasks(self, split):
    return self._tasks


def _script(identity):
  """Right at the first turn, the third, or never, by task and member."""
  return str(1 + (identity[-1] + identity[-2]) % 3)


def _evaluate(shuffle=0, attempts=2, seed=0):
  world = _World()
  panel = evaluate.make_panel(world, 'valid', 0)
  sampler = fakes.ScriptedSampler(_script, shuffle)
  return evaluate.evaluate(
    panel,
    fakes.in_process(world),
    sampler,
    fakes.agent(),
    attempts=attempts,
    seed=seed,
  )


def test_panel_digest_names_its_content():
  panel = evaluate.make_panel(_World(), 'valid', 2)
  assert panel.name == 'counting/valid/2'
  assert [task.task_id for task in panel.tasks] == ['task 1', 'task 2']
  assert panel.digest == evaluate.make_panel(_World(), 'other', 2).digest
  assert panel.digest != evaluate.make_panel(_World(), 'valid', 3).digest
  turned = _World(fakes.tasks()[::-1])
  assert panel.digest != evaluate.make_panel(turned, 'valid', 2).digest
  changed = _World()
  changed._tasks.digest = 'abd'
  assert panel.digest != evaluate.make_panel(changed, 'valid', 2).digest


def test_panel_refuses_what_a_split_does_not_have():
  with pytest.raises(ValueError, match=r"config\.eval\.tasks=4: split 'valid'.*has 3"):
    evaluate.make_panel(_World(), 'valid', 4)
  twice = _World([fakes.tasks()[0]] * 2)
  with pytest.raises(ValueError, match='occurs twice'):
    evaluate.make_panel(twice, 'valid', 0)


def test_each_task_is_played_so_many_times():
  report, trajectories = _evaluate(attempts=3)
  played = [(t['task_id'], t['attempt']) for t in report['tasks']]
  assert played == [(f'task {i}', k) for i in (1, 2, 3) for k in range(3)]
  assert len(trajectories) == report['n'] == 9
  assert report['successes'] == sum(t['success'] for t in report['tasks'])


def test_the_same_seed_gives_the_same_report():
  one, two = _evaluate(shuffle=1), _evaluate(shuffle=2)
  assert json.dumps(one[0]) == json.dumps(two[0])


def _trajectory(task_type, outcome, turns):
  """So many good turns and a bad one."""
  _, trajectories = _evaluate(attempts=1)
  good = trajectories[0].turns[0]
  bad = dataclasses.replace(good, valid=False, admissible=False, stop_reason='length')
  good = dataclasses.replace(good, valid=True, admissible=True, stop_reason='stop')
  return Trajectory('task', task_type, 0, 0, [good] * turns + [bad], outcome)


def test_summary_counts():
  trajectories = [
    _trajectory('a', Outcome.SUCCESS, 3),
    _trajectory('a', Outcome.MAX_TURNS, 1),
    _trajectory('b', Outcome.FAILURE, 1),
    _trajectory('b', Outcome.ENV_ERROR, 9),
  ]
  report = evaluate.summarise(trajectories)
  assert (report['n'], report['successes'], report['faults']) == (3, 1, 1)
  assert report['mean_turns'] == pytest.approx((4 + 2 + 2) / 3)
  assert report['valid_action_rate'] == pytest.approx(5 / 8)
  assert report['admissible_action_rate'] == pytest.approx(5 / 8)
  assert report['truncated_rate'] == pytest.approx(3 / 8)
  expected = stats.binomtest(1, 3).proportion_ci(method='wilson')
  np.testing.assert_allclose(report['interval'], expected)
  by_type = report['by_type']
  assert [by_type[k]['n'] for k in ('a', 'b')] == [2, 1]
  assert [by_type[k]['successes'] for k in ('a', 'b')] == [1, 0]


def test_nothing_played_is_not_a_division_by_zero():
  report = evaluate.summarise([])
  assert report['n'] == 0 and report['success_rate'] == 0.0


def test_scores_and_the_macro_average_count_every_episode_once():
  def episode(kind, success, score):
    outcome = Outcome.SUCCESS if success else Outcome.MAX_TURNS
    return Trajectory('t', kind, 0, 0, [], outcome, score=score)

  graded = [
    episode('a', True, 1.0),
    episode('a', False, 0.5),
    episode('a', False, 0.0),
    episode('b', True, 1.0),
    Trajectory('t', 'b', 0, 0, [], Outcome.ENV_ERROR, score=0.0),
  ]
  report = evaluate.summarise(graded)
  assert report['mean_score'] == 2.5 / 4 and report['faults'] == 1
  assert report['success_rate'] == 2 / 4
  assert report['macro_success_rate'] == pytest.approx((1 / 3 + 1) / 2)
  plain = evaluate.summarise([episode('a', True, None)])
  assert 'mean_score' not in plain
