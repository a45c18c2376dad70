"""Reports against counts by hand, where they are kept, and how they are shown."""

import dataclasses
import itertools
import json

import fakes
import numpy as np
import pytest
from scipy import stats

from sdar_jax import files
from sdar_jax.evaluation import evaluate, panels
from sdar_jax.evaluation.reports import Evaluations
from sdar_jax.trajectory import Outcome, Trajectory


class _Tasks(list):
  digest = 'abc'


class _World(fakes.World):
  def tasks(self, split):
    return _Tasks(fakes.tasks())


def _script(identity):
  """Right at the first turn, the third, or never, by task and member."""
  return str(1 + (identity[-1] + identity[-2]) % 3)


def _plan(attempts=2, seed=0, **changes):
  panel = panels.make_panel(_World(), 'valid', 0)
  plan = evaluate.Plan(panel, fakes.agent(), attempts, seed, False, 'w' * 64)
  return dataclasses.replace(plan, **changes)


def _evaluate(shuffle=0, script=_script, **plan):
  sampler = fakes.ScriptedSampler(script, shuffle)
  pool = fakes.in_process(_World())
  return evaluate.evaluate(_plan(**plan), pool, sampler, {'step': 5})


def test_each_task_is_played_so_many_times():
  report, trajectories = _evaluate(attempts=3)
  played = [(t['task_id'], t['attempt']) for t in report['tasks']]
  assert played == [(f'task {i}', k) for i in (1, 2, 3) for k in range(3)]
  assert len(trajectories) == report['n'] == 9
  assert report['successes'] == sum(t['success'] for t in report['tasks'])


def test_the_same_seed_gives_the_same_report():
  one, two = _evaluate(shuffle=1), _evaluate(shuffle=2)
  assert json.dumps(one[0]) == json.dumps(two[0])


def test_report_says_what_was_played_and_how():
  sampling = dataclasses.replace(fakes.agent().sampling, temperature=0.5, top_k=3)
  agent = dataclasses.replace(fakes.agent(), sampling=sampling)
  report, _ = _evaluate(attempts=3, seed=7, agent=agent, with_skills=True)
  expected = {
    'schema': evaluate.REPORT_SCHEMA,
    'panel': 'counting/valid/3',
    'composition': {'kind': 3},
    'world_digest': 'w' * 64,
    'with_skills': True,
    'temperature': 0.5,
    'top_p': 1.0,
    'top_k': 3,
    'max_prompt_tokens': 1000,
    'max_response_tokens': 9,
    'attempts': 3,
    'seed': 7,
    'step': 5,
  }
  assert expected.items() <= report.items() and len(report['panel_digest']) == 64


_numbers = itertools.count()


def _trajectory(task_type, outcome, turns):
  """So many good turns and a bad one."""
  _, trajectories = _evaluate(attempts=1)
  good = trajectories[0].turns[0]
  bad = dataclasses.replace(good, valid=False, admissible=False, stop_reason='length')
  good = dataclasses.replace(good, valid=True, admissible=True, stop_reason='stop')
  turns = [good] * turns + [bad]
  return Trajectory(f'task {next(_numbers)}', task_type, 0, 0, turns, outcome)


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


def test_attempts_at_a_task_are_no_further_tasks():
  """Ten tasks of eight equal attempts say as much as ten of one."""

  def episodes(attempts):
    return [
      Trajectory(
        f'task {i}', 'a', i, k, [], Outcome.FAILURE if i % 2 else Outcome.SUCCESS
      )
      for i in range(10)
      for k in range(attempts)
    ]

  many, one = (evaluate.summarise(episodes(k)) for k in (8, 1))
  assert (many['n'], many['tasks_played'], one['n']) == (80, 10, 10)
  assert many['interval'] == one['interval'] == many['by_type']['a']['interval']
  expected = stats.binomtest(5, 10).proportion_ci(method='wilson')
  np.testing.assert_allclose(many['interval'], expected)


def test_nothing_played_is_no_number():
  fault = Trajectory('t', 'a', 0, 0, [], Outcome.ENV_ERROR)
  for trajectories in ([], [fault]):
    report = evaluate.summarise(trajectories)
    assert report['n'] == 0 and report['faults'] == len(trajectories)
    numbers = {k: v for k, v in report.items() if k.endswith(('rate', 'turns'))}
    assert len(numbers) == 6 and set(numbers.values()) == {None}
    assert report['interval'] is None and 'mean_score' not in report


def test_an_evaluation_that_faults_took_is_an_error_with_its_counts():
  broken = lambda identity: 'boom' if identity[-2] % 2 else _script(identity)
  with pytest.raises(evaluate.EvaluationError) as caught:
    _evaluate(script=broken)
  text = str(caught.value)
  assert 'counting/valid/3: 3 of 6 episodes' in text and 'env_error 3' in text
  assert 'faults: ' in text and '10%' in text and '\n' not in text


@pytest.mark.parametrize('lost, total, enough', [(1, 10, True), (2, 19, False)])
def test_a_tenth_of_the_episodes_may_be_lost(lost, total, enough):
  outcomes = [Outcome.TIMEOUT] * lost + [Outcome.SUCCESS] * (total - lost)
  trajectories = [Trajectory('t', 'a', 0, i, [], o) for i, o in enumerate(outcomes)]
  if enough:
    evaluate.check_played('p', trajectories, {})
  else:
    with pytest.raises(evaluate.EvaluationError, match='timeout 2'):
      evaluate.check_played('p', trajectories, {})
  with pytest.raises(evaluate.EvaluationError, match='none was played'):
    evaluate.check_played('p', [], {})


def test_tasks_that_nobody_was_shown_are_no_result():
  agent = dataclasses.replace(fakes.agent(), max_prompt_tokens=16)
  assert _evaluate(attempts=1, agent=agent)[0]['n'] == 3
  agent = dataclasses.replace(agent, max_prompt_tokens=15)
  with pytest.raises(evaluate.UnshownError, match='3 of 3 episodes') as caught:
    _evaluate(attempts=1, agent=agent)
  assert 'config.rollout.max_prompt_tokens=15: raise it' in str(caught.value)


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
  unshown = Trajectory('t', 'b', 0, 0, [], Outcome.PROMPT_TOO_LONG)  # Counts 0.
  assert evaluate.summarise([*graded, unshown])['mean_score'] == 2.5 / 5
  assert report['success_rate'] == 2 / 4
  assert report['macro_success_rate'] == pytest.approx((1 / 3 + 1) / 2)
  lost = Trajectory('t', 'c', 0, 0, [], Outcome.TIMEOUT)  # All of its type.
  assert evaluate.summarise([*graded, lost])['macro_success_rate'] is None
  plain = evaluate.summarise([episode('a', True, None)])
  assert 'mean_score' not in plain


def _kept(directory, **changes):
  plan = _plan(**changes)
  return Evaluations(directory, {**plan.settings, 'model_digest': 'm'})


def _put(kept, step, directory, mark=0, **changes):
  settings = {**_plan(**changes).settings, 'model_digest': 'm'}
  kept.write(step, {**settings, 'step': step, 'mark': mark})


@pytest.mark.parametrize(
  'changes',
  [
    {'attempts': 3},
    {'seed': 1},
    {'with_skills': True},
    {'world_digest': 'x' * 64},
    {'agent': dataclasses.replace(fakes.agent(), max_prompt_tokens=9)},
    {'panel': dataclasses.replace(_plan().panel, digest='other')},
    {
      'agent': dataclasses.replace(
        fakes.agent(),
        sampling=dataclasses.replace(fakes.agent().sampling, temperature=0.25),
      )
    },
  ],
)
def test_a_report_of_other_settings_is_set_aside_and_comes_back(tmp_path, changes):
  first, other = _kept(tmp_path), _kept(tmp_path, **changes)
  for step in (0, 10):
    _put(first, step, tmp_path, mark=step)
  assert first.sort() == 0 and first.read(10)['mark'] == 10
  assert other.read(10) is None  # Before anything was moved, too.
  assert other.sort() == 2 and other.read(0) is None
  assert not list((tmp_path / 'eval').glob('*.json'))
  assert len(list((tmp_path / 'eval' / 'superseded').iterdir())) == 2
  _put(other, 10, tmp_path, mark=-1, **changes)
  assert first.sort() == 1
  assert [first.read(step)['mark'] for step in (0, 10)] == [0, 10]
  assert other.sort() == 2 and other.read(10)['mark'] == -1


def test_reports_of_other_weights_or_schema_are_not_served(tmp_path):
  kept = _kept(tmp_path)
  for step, change in ((0, {'model_digest': 'x'}), (5, {'schema': 1})):
    report = {**_plan().settings, 'model_digest': 'm', 'step': step, **change}
    kept.write(step, report)
    assert kept.read(step) is None
  assert kept.sort() == 2
  kept.write(5, {'schema': 1})  # Says nothing of its settings.
  assert kept.sort() == 1 and kept.read(5) is None


@pytest.mark.parametrize('content', [b'', b'{', b'[1]', b'[' * 100_000, b'\xff'])
def test_a_damaged_report_is_named(tmp_path, content):
  kept = _kept(tmp_path)
  _put(kept, 5, tmp_path)
  (path,) = (tmp_path / 'eval').glob('*.json')
  path.write_bytes(content)
  for read in (kept.sort, lambda: kept.read(5)):
    with pytest.raises(files.FileError, match='delete it') as caught:
      read()
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
