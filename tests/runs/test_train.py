"""The phases of a run and its loop, with a scripted world and without a model."""

import contextlib
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
from ml_collections import ConfigDict

from sdar_jax import train
from sdar_jax.batching import packing
from sdar_jax.learner import recovery
from sdar_jax.logs.console import Console
from sdar_jax.methods import table
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.process.team import ALONE
from sdar_jax.rollout import episodes, order
from sdar_jax.rollout.patience import EmptyStepError, Patience

CONFIG = {
  'seed': 3,
  'eval': {'every': 2},
  'checkpoint': {'every': 3},
  'algorithm': {'invalid_penalty': 0.5},
  'train': {'shuffle_rows': False},
  'rollout': {
    'tasks_per_step': 2,
    'group_size': 2,
    'refills': 0,
    'success_reward': 10.0,
  },
}


class _Learner:
  """Scores of the host's own making; nothing reaches a device."""

  reads_distributions, scores_apart = False, True

  def score(self, state, initial, student, teacher):
    assert not teacher
    zeros = lambda sheet: np.zeros(sheet['response_mask'].shape, np.float32)
    return [{'old_logprobs': zeros(sheet)} for sheet in student], []


def _run(stop=lambda: False, **parts):
  """A run of `fakes.World`, whose policy says '1'."""
  run = object.__new__(train.Run)
  run.step, run.cursor, run.state, run.memory = 0, 0, None, {}
  run.saves = recovery.Saves(None, None, None, 0)
  run.team, run._signal, run._collect = ALONE, stop, episodes.collect
  run.console = Console(1, None)
  run.profiler = SimpleNamespace(begin=lambda step: None)
  run.patience = Patience(0.0, print, stop)
  run.sampler = fakes.ScriptedSampler(lambda identity: '1', 0)
  run.parts = SimpleNamespace(
    config=ConfigDict(CONFIG),
    teacher=SimpleNamespace(retriever=SimpleNamespace(begin_step=lambda step: None)),
    pool=fakes.in_process(),
    tasks=fakes.tasks(),
    agent=fakes.agent(),
    algorithm=table.find('grpo'),
    hyper=Hyperparameters(),
    packing=packing.Packing('sorted', 64, 8, (64,), (64,), 8),
    initial=None,
    learner=_Learner(),
  )
  vars(run.parts).update(parts)
  return run


def test_a_step_plays_the_next_tasks_of_the_training_order():
  run, every = _run(), []
  for step in range(3):
    run.step = step
    groups, played = run.collect()
    assert groups is played and [len(g.trajectories) for g in groups] == [2, 2]
    every += groups
    assert run.cursor == 2 * (step + 1)
  wanted = order.tasks_at(fakes.tasks(), seed=3, cursor=0, count=6)
  assert [group.task.task_id for group in every] == [task.task_id for task in wanted]
  returns = {(g.task.payload, t.episode_return) for g in every for t in g.trajectories}
  assert returns == {('1', 10.0), ('2', 0.0), ('3', 0.0)}
  steps = {request.identity[:2] for request in run.sampler.requests}
  assert steps == {(3, 0), (3, 1), (3, 2)}


def test_groups_without_contrast_are_replaced_by_the_tasks_that_follow():
  run = _run()
  run.parts.config.rollout.refills = 2
  groups, played = run.collect()  # All say '1', so no group has contrast.
  assert len(groups) == 2 and len(played) == 6 and run.cursor == 6


def test_a_run_stopped_while_it_plays_plays_the_same_again():
  run = _run(stop=lambda: True)
  with pytest.raises(episodes.Interrupted):
    run.collect()
  assert run.cursor == 0


def test_a_step_without_rows_names_the_limit():
  run = _run(agent=fakes.agent(limit=1))
  groups, _ = run.collect()
  with pytest.raises(EmptyStepError, match=r'config.rollout.max_prompt_tokens=1$'):
    run.rows(groups)


def test_rows_have_the_penalty_and_no_teacher_where_the_method_has_none():
  run = _run()
  groups, _ = run.collect()
  groups[0].trajectories[0].turns[0].valid = False
  rows = run.rows(groups)
  assert [row.penalty for row in rows].count(0.5) == 1 and rows[0].penalty == 0.5
  assert run.teacher_prompts(rows) == ((), None)
  (sheets,), privileged = run.pack(rows, ())
  assert sorted(i for m in sheets for i in m['row_index'] if i >= 0) == [
    *range(len(rows))
  ]
  assert privileged == []


@pytest.mark.parametrize('weight', [1.0, 2.0])
def test_credit_knows_what_is_action_where_that_weighs_more(weight):
  ends = lambda ids, response: 1 if response == 'abc' else 2
  run = _run(
    hyper=Hyperparameters(action_weight=weight),
    chat=SimpleNamespace(thought_end=ends),
  )
  run.state = None
  run.sampler = fakes.ScriptedSampler(
    lambda identity: 'abc' if identity[-2] else 'wxyz', 0
  )
  groups, _ = run.collect()
  rows = run.rows(groups)
  known = run.credit(rows, None, run.score(rows, *run.pack(rows, ())))
  assert known.keys() >= {'old_logprobs', 'advantages', 'turn_ids', 'response_mask'}
  assert ('action_mask' in known) == (weight != 1)
  for index, row in enumerate(rows):
    size = len(row.turn.response_ids)
    columns = range(known['response_mask'].shape[1])
    there = [t < size for t in columns]
    assert known['response_mask'][index].tolist() == there
    if weight != 1:
      end = ends(row.turn.response_ids, row.turn.response)
      want = [end <= t < size for t in columns]
      assert known['action_mask'][index].tolist() == want


def test_evaluations_and_checkpoints_are_due_when_the_config_says(monkeypatch):
  run, evaluated, saved = _run(), [], []
  run.evaluate = lambda: evaluated.append(run.step)

  def save(store, step, *rest):
    saved.append(step)
    return True

  monkeypatch.setattr(recovery, 'save', save)
  for step in range(8):
    run.step = step
    run.maybe_evaluate()
    run.maybe_checkpoint()
    run.maybe_checkpoint()  # What is saved is not saved again.
  assert evaluated == [0, 2, 4, 6] and saved == [3, 6]
  run.parts.config.eval.every = 0
  evaluated.clear()
  for run.step in range(3):
    run.maybe_evaluate()
  assert evaluated == [0]


def test_the_last_save_is_tried_until_the_store_gives_up(monkeypatch):
  run, tries = _run(), []

  def fail_twice(store, step, *rest):
    tries.append(step)
    return len(tries) == 3

  monkeypatch.setattr(recovery, 'save', fail_twice)
  run.step = 5
  run.save()
  assert tries == [5, 5, 5]


class _Recorded:
  """What `loop` asks of a run, in order."""

  def __init__(self, steps, stop_after):
    self.done, self.step, self.initial = [], 0, object()
    self.state = SimpleNamespace(step=0, policy='policy 0')
    self.sampler = SimpleNamespace(update=lambda policy: self.done.append(policy))
    self.stop = lambda: self.step == stop_after
    told = lambda name: lambda *args: self.done.append(f'ahead of {name}')
    names = 'scores', 'gradients'
    self.ahead = SimpleNamespace(**{name: told(name) for name in names})
    self.clock = lambda name: contextlib.nullcontext(self.done.append(f'[{name}]'))
    names = ('to_device', 'train_step', 'finish_step')
    learner = SimpleNamespace(**{name: getattr(self, f'_{name}') for name in names})
    config = SimpleNamespace(steps=steps)
    self.parts = SimpleNamespace(config=config, learner=learner, initial=self.initial)

  def __getattr__(self, name):
    results = {
      'collect': ('groups', 'played'),
      'teacher_prompts': ('prompts', 'views'),
      'pack': (['first', 'second'], 'privileged'),
    }
    return lambda *args: self.done.append(name) or results.get(name, name)

  def policy(self):
    return self.state.policy

  def _to_device(self, minibatch, known):
    assert known == 'credit'
    return minibatch

  def _train_step(self, state, minibatch, initial):
    assert initial is self.initial
    self.done.append(minibatch)
    return SimpleNamespace(step=state.step, policy='midway'), {}

  def _finish_step(self, state):
    step = state.step + 1
    return SimpleNamespace(step=step, policy=f'policy {step}')


def _pass(step):
  before = ['maybe_evaluate', '[rollout]', 'collect', '[batch]', 'rows']
  before += ['teacher_prompts', 'pack', '[score]', 'ahead of scores', 'score', 'credit']
  before += ['[update]', 'ahead of gradients', 'first', 'second', f'policy {step}']
  return [*before, 'report', 'maybe_checkpoint']


def test_a_pass_of_the_loop_is_one_step():
  run = _Recorded(steps=2, stop_after=None)
  train.loop(run)
  assert run.done == [*_pass(1), *_pass(2), 'save', 'finish'] and run.step == 2


def test_a_run_that_shall_stop_ends_behind_its_step():
  run = _Recorded(steps=9, stop_after=1)
  with pytest.raises(episodes.Interrupted):
    train.loop(run)
  assert run.done == _pass(1)
