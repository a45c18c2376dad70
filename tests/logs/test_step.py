"""What is measured of a step, against figures counted by hand."""

import math

import numpy as np

from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs.base import Task
from sdar_jax.logs import console
from sdar_jax.logs import step as step_lib
from sdar_jax.prompts.skills import NOTHING, SkillView
from sdar_jax.prompts.teacher import PLAIN
from sdar_jax.rollout import refills
from sdar_jax.rollout.request import SamplerCounts
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
  got = step_lib.rollout_metrics(_groups(), invalid_penalty=0.1)
  assert got['rollout/success_rate'] == 0.25
  assert got['rollout/return_mean'] == 2.5
  assert got['rollout/turns_mean'] == 1.25
  assert got['rollout/valid_action_rate'] == 0.8
  assert got['rollout/admissible_action_rate'] == 0.6
  assert got['rollout/zero_variance_groups'] == 0.5
  assert got['rollout/response_tokens_mean'] == 11 / 5
  assert got['rollout/rows'] == 5
  assert got['rollout/sampled_tokens'] == 11
  assert got['rollout/groups_played'] == 2


def test_the_work_of_a_sampler_is_told_in_shares():
  counts = SamplerCounts(
    prompt_tokens=100,
    kept_tokens=10,
    copied_tokens=30,
    prefilled_tokens=60,
    prefill_positions=80,
    decoded_tokens=9,
    decode_positions=12,
  )
  assert step_lib.sampler_shares(counts) == {
    'perf/cached_share': 0.4,
    'perf/prefill_padding': 0.25,
    'perf/occupancy': 0.75,
  }
  nothing = step_lib.sampler_shares(SamplerCounts())
  assert all(math.isnan(value) for value in nothing.values())


def _group(*turns, returns=(0.0, 0.0), outcomes=(Outcome.FAILURE,) * 2):
  members = [
    Trajectory('a', 'k', 0, i, [*turns, _turn(1, value)], outcome)
    for i, (value, outcome) in enumerate(zip(returns, outcomes, strict=True))
  ]
  return Group(0, Task('a', 'k', '', {}, None), members)


def test_groups_without_variance_are_those_whose_rows_score_alike():
  """One malformed turn is enough to compare; a fault takes the whole group out."""
  malformed = _turn(1, valid=False)
  faulty = _group(outcomes=(Outcome.FAILURE, Outcome.TIMEOUT))
  of = lambda *groups, penalty=0.1: step_lib.rollout_metrics(
    groups, invalid_penalty=penalty
  )['rollout/zero_variance_groups']
  assert of(_group()) == 1
  assert of(_group(malformed)) == 0
  assert of(_group(malformed), penalty=0.0) == 1
  assert of(_group(returns=(0.0, 1.0))) == 0
  assert of(_group(), faulty, _group(malformed)) == 0.5
  assert np.isnan(of(faulty))


def test_repetition_is_of_runs_of_four_tokens():
  assert step_lib.repetition(np.array([1, 2, 3])) is None
  assert step_lib.repetition(np.arange(9)) == 0
  assert step_lib.repetition(np.array([7] * 8)) == 1 - 1 / 5
  # 1231 2312 3123, and again 1231 2312 3123.
  assert step_lib.repetition(np.array([1, 2, 3] * 3)) == 1 - 3 / 6


def test_repeated_actions_are_those_of_the_turn_before():
  turns = [
    _turn(1, action=action) for action in ('look', 'look', 'go', 'look', 'look', 'look')
  ]
  episodes_ = [
    Trajectory('a', 'k', 0, i, some, Outcome.FAILURE)
    for i, some in enumerate([turns, turns[:1]])
  ]
  group = Group(0, Task('a', 'k', '', {}, None), episodes_)
  got = step_lib.rollout_metrics([group], invalid_penalty=0.1)
  assert got['rollout/repeated_action_rate'] == 3 / 5


def test_success_is_of_all_that_was_played_and_rows_of_what_was_kept():
  """A filter on contrast keeps groups near one half: no estimate of success."""
  contrast, solved, failed = (
    _group(returns=(0.0, 1.0), outcomes=(Outcome.FAILURE, Outcome.SUCCESS)),
    _group(returns=(1.0, 1.0), outcomes=(Outcome.SUCCESS,) * 2),
    _group(),
  )
  rounds = iter([[failed], [solved], [failed], [contrast]])
  kept, played = refills.with_refills(lambda: next(rounds), 9)
  rows = rows_lib.rows(kept, invalid_penalty=0.1)
  token = np.zeros((1, 1), np.float32)
  mask = np.ones((1, 1), bool)
  known = {'response_mask': mask, 'sampler_logprobs': token, 'old_logprobs': token}
  turns = {'gap_by_turn': ([2.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])}
  got = step_lib.step_metrics(
    played, rows, None, known, [turns], invalid_penalty=0.1, max_turns=3
  )
  assert got['rollout/success_rate'] == 3 / 8
  assert got['rollout/zero_variance_groups'] == 3 / 4
  assert (got['rollout/groups_played'], got['rollout/groups_kept']) == (4, 1)
  assert (got['rollout/rows'], got['train/rows']) == (8, 2)
  np.testing.assert_array_equal(got['train/gap_by_turn'], [2.0, np.nan, np.nan])


def test_a_step_that_taught_nothing_says_why():
  values = {
    'rollout/valid_action_rate': 0.9,
    'rollout/truncated_rate': 0.75,
    'rollout/success_rate': 1.0,
    'train/advantage_abs': 0.0,
    'train/policy_loss': 0.0,
  }
  alike = step_lib.hint(values, None)
  assert 'no policy gradient' in alike and '100% succeeded' in alike
  assert step_lib.hint(values | {'train/advantage_abs': 0.1}, None) is None
  del values['train/policy_loss']  # A teacher alone needs no contrast.
  assert step_lib.hint(values, [_view('s'), SkillView((), ('t',), 0)]) is None
  assert step_lib.hint(values, [NOTHING, NOTHING]) is None  # Nobody solved it.
  long = step_lib.hint(values, [NOTHING, SkillView((), ('t',), 0)])
  assert 'nothing was taught' in long and 'config.skills.token_budget' in long
  malformed = step_lib.hint(values | {'rollout/valid_action_rate': 0.0}, None)
  assert 'no response obeyed' in malformed and '75% were cut' in malformed


def _view(*ids):
  return SkillView(ids, (), 7 * len(ids))


def test_skills_are_counted_by_row_and_by_episode():
  rows = rows_lib.rows(_groups(), invalid_penalty=0.1)
  views = [_view('s', 't'), _view('s'), _view('t'), NOTHING, _view('u')]
  own = [NOTHING, _view('own'), NOTHING, NOTHING, NOTHING]
  assert step_lib.skills_seen(views) == {'s': 2, 't': 2, 'u': 1}
  assert step_lib.skill_metrics(views)['train/teacher_skill_tokens_min'] == 0
  plain = SkillView((PLAIN,), (), 0)  # A lesson, and no skill.
  assert step_lib.skill_metrics([plain, _view('s')])['train/teacher_skills_mean'] == 0.5
  shown = step_lib.shown_by_episode(rows, views, own)
  assert shown == [
    (('s', 't', 'own'), True),
    (('t',), False),
    ((), False),
    (('u',), False),
  ]


def test_a_step_says_for_how_long_it_compiled():
  spent = [3.0]
  clock = step_lib.Clock(compiled=lambda: spent[0])
  groups = _groups()
  rows, lines = rows_lib.rows(groups, invalid_penalty=0.1), []
  for more in (0.0, 1.5, 0.0):
    spent[0] += more
    for phase in ('rollout', 'score', 'update'):
      with clock(phase):
        pass
    lines.append(clock.timings(groups, rows, env_faults=0, failed_saves=0))
  assert [line['perf/compile_seconds'] for line in lines] == [3.0, 1.5, 0.0]
  said = [console.summary(line) for line in lines]
  assert said[1].endswith('  compiled 1.5 s') and 'compiled' not in said[2]


def test_a_step_says_what_its_phases_cost_processors(monkeypatch):
  used = [0.0]
  monkeypatch.setattr(step_lib.time, 'process_time', lambda: used[0])
  clock, groups = step_lib.Clock(), _groups()
  rows, costs = rows_lib.rows(groups, invalid_penalty=0.1), []
  for cost in (2.0, 0.5):
    for phase in ('rollout', 'score', 'update'):
      used[0] += 8.0  # Between phases: of no step.
      with clock(phase):
        used[0] += cost
    costs.append(clock.timings(groups, rows, env_faults=0, failed_saves=0))
  assert [line['perf/cpu_seconds'] for line in costs] == [6.0, 1.5]
