"""Whole small runs of controls, of two contexts, and of a teacher that retires."""

import json

import micro_run
import numpy as np
import pytest

from sdar_jax.learner.learner import Learner


@pytest.fixture(scope='module', autouse=True)
def shared_programs():
  with micro_run.compiling():
    yield


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('micro') / 'model')


@pytest.fixture
def passes(monkeypatch):
  """Counts the teacher's sheets of each pass."""
  counts, score = [], Learner.score

  def counted(self, state, initial, student, teacher=()):
    counts.append(len(teacher))
    return score(self, state, initial, student, teacher)

  monkeypatch.setattr(Learner, 'score', counted)
  return counts


def run(model, path, method, steps=1, **changes):
  """(metrics of each pass, records of tokens, texts that students saw)."""
  c = micro_run.config(model, method, steps, **changes)
  c.log.token_rows, c.eval.every = 64, 0
  outcome = micro_run.start(c, path)
  assert outcome.error == ''
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  metrics = [line for line in map(json.loads, lines) if 'train/rows' in line]
  tokens, seen = [], []
  for file in sorted(path.glob('trajectories/*.jsonl')):
    for line in map(json.loads, file.read_text().splitlines()):
      turns = [turn for turn in line['turns'] if 'tokens' in turn]
      tokens += [{**t['tokens'], 'response_ids': t['response_ids']} for t in turns]
      seen += [turn['prompt_text'] for turn in line['turns']]
  return metrics, tokens, seen


def gates(tokens):
  return np.concatenate([record['gate'] for record in tokens])


def test_a_teacher_without_privilege_has_gap_0_and_costs_no_pass(
  model, tmp_path, passes
):
  (metrics,), tokens, _ = run(model, tmp_path / 'run', 'sdar-none')
  assert passes == [0]
  assert len(tokens) == metrics['train/rows'] and metrics['train/taught'] == 1
  assert metrics['train/teacher_skill_tokens_mean'] == 0
  for record in tokens:
    assert record['teacher_logprobs'] == record['old_logprobs']
    assert not any(record['gap'])
  np.testing.assert_array_equal(gates(tokens), np.float32(0.5))


def test_another_teacher_than_the_policy_is_asked_its_student_s_prompt(
  model, tmp_path, passes
):
  _, tokens, _ = run(
    model, tmp_path / 'run', 'sdar-none', algorithm_teacher_weights='initial'
  )
  assert passes[0] > 0
  for record in tokens:  # It is the policy before its first update.
    np.testing.assert_allclose(record['gap'], 0, atol=1e-5)


def test_controls_change_what_teachers_see_and_nothing_that_students_do(
  model, tmp_path, passes
):
  found = {
    name: run(model, tmp_path / name, name)
    for name in ('sdar', 'sdar-none', 'sdar-other-task', 'sdar-shuffled')
  }
  (plain,), tokens, seen = found['sdar']
  for name, ((metrics,), theirs, shown) in found.items():
    assert shown == seen, name
    for record, own in zip(theirs, tokens, strict=True):
      assert record['response_ids'] == own['response_ids']
      assert record['old_logprobs'] == own['old_logprobs']
    assert metrics['rollout/return_mean'] == plain['rollout/return_mean']
  mixed, other = (found[f'sdar-{name}'][1] for name in ('shuffled', 'other-task'))
  for record, own in zip(mixed, tokens, strict=True):
    assert record['teacher_skill_tokens'] in (own['teacher_skill_tokens'], 0)
    if record['teacher_skill_tokens']:
      assert record['teacher_skills'] == own['teacher_skills']
      assert record['teacher_logprobs'] != own['teacher_logprobs']
  assert any(record['teacher_skill_tokens'] for record in mixed)
  for record, own in zip(other, tokens, strict=True):
    if record['teacher_skills']:
      assert {*record['teacher_skills']} - {*own['teacher_skills']}
  assert any(record['teacher_skills'] for record in other)


def test_two_contexts_are_scored_in_one_pass(model, tmp_path, passes):
  (metrics,), tokens, _ = run(
    model,
    tmp_path / 'run',
    'ocsd',
    skills_token_budget=64,
    train_teacher_buckets=(136,),
  )
  assert passes[0] > 0 and 0 < metrics['train/taught'] < 1
  taught = [record for record in tokens if record['teacher_skills']]
  assert {tuple(record['teacher_skills']) for record in taught} == {('answer',)}
  one = run(
    model,
    tmp_path / 'one',
    'ahead',
    skills_token_budget=64,
    train_teacher_buckets=(136,),
  )
  for record, alone in zip(tokens, one[1], strict=True):
    np.testing.assert_allclose(
      record['teacher_logprobs'], alone['teacher_logprobs'], atol=1e-5
    )


RETIRES = {'retire_decay': 0.0, 'retire_slope': 1.0, 'retire_success': 0.0}
RETIRES = {f'algorithm_{name}': value for name, value in RETIRES.items()}


def test_a_teacher_retires_for_good_also_across_starts(model, tmp_path, passes):
  """It stands still by the second pass, whatever the gap; the third is without."""
  given = {'model_teacher': str(model), **RETIRES}
  metrics, _, _ = run(model, tmp_path / 'one', 'retire-opd', 4, **given)
  assert [line['train/taught'] > 0 for line in metrics] == [True, True, False, False]
  assert [count > 0 for count in passes] == [True, True, False, False]
  host = micro_run.record(tmp_path / 'one', 4)['host']
  assert host['method']['share'] == 0
  for steps in (2, 3, 4):
    again, _, _ = run(model, tmp_path / 'parts', 'retire-opd', steps, **given)
  assert again == metrics
  assert micro_run.record(tmp_path / 'parts', 4)['host']['method'] == host['method']


def test_a_given_teacher_stays_as_it_was(model, tmp_path):
  given = {'model_teacher': str(model), 'algorithm_retire_success': 1.0}
  run(model, tmp_path / 'run', 'retire-opd', 2, **given)
  c = micro_run.config(model, 'retire-opd', 3, **given)
  outcome = micro_run.start(c, tmp_path / 'run')
  assert outcome.error == ''
  _, state, _ = outcome.saved
  trained = {k: v for k, v in state.items() if k.startswith('.params')}
  teacher = {k: v for k, v in state.items() if k.startswith('.teacher')}
  assert len(trained) == len(teacher) > 0
  first, _, _ = (
    micro_run.start(
      micro_run.config(model, 'retire-opd', 1, **given), tmp_path / 'first'
    ).saved,
    None,
    None,
  )
  before = {k: v for k, v in first[1].items() if k.startswith('.teacher')}
  assert before == teacher
  assert all(
    trained[k] != teacher[k.replace('.params', '.teacher', 1)] for k in trained
  )


@pytest.mark.parametrize(
  'changes, line',
  [
    ({}, "config.algorithm.teacher_weights='given': set config.model.teacher"),
    (
      {'model_teacher': 'MODEL', 'algorithm_teacher_weights': 'policy'},
      'nothing reads it unless',
    ),
    ({'model_teacher': 'MODEL', 'model_lora_rank': 2}, 'config.model.lora_rank=2: a'),
  ],
)
def test_a_teacher_that_is_not_to_be_had_is_one_line(model, tmp_path, changes, line):
  changes = {k: str(model) if v == 'MODEL' else v for k, v in changes.items()}
  c = micro_run.config(model, 'retire-opd', 1, **changes)
  error = micro_run.start(c, tmp_path / 'run').error
  assert error.startswith('ConfigError: ') and line in error and '\n' not in error
