"""Credit of later methods and controls against loops, and what they hold to."""

import numpy as np
import pytest
from algorithm_cases import (
  TURNS,
  assert_close,
  assert_same,
  credit,
  hyper_of,
  step_data,
  taught_tokens,
)
from credit_loops import (
  loop_agreed,
  loop_ahead,
  loop_grpo,
  loop_ocsd,
  loop_rlcsd,
  loop_sipo,
  loop_taspo,
  loop_unlikely,
  spread,
)

from sdar_jax.advantages import outcome
from sdar_jax.methods.credit import remembered
from sdar_jax.methods.table import ALGORITHMS, find


def plain_of(name, data):
  return loop_grpo(data, divide=hyper_of(name).divide_by_std)


@pytest.mark.parametrize('numbers', [{}, {'gap_scale': 0.7, 'contrast_floor': 0.2}])
def test_rlcsd_adds_a_squashed_contrast_and_takes_two_means(numbers):
  data = step_data()
  scale, floor = numbers.get('gap_scale', 0.02), numbers.get('contrast_floor', 0.02)
  want = loop_rlcsd(data, loop_grpo(data), 0.5, scale, floor)
  got = credit('rlcsd', data, **numbers)['advantages']
  assert_close(got, want, rtol=1e-5)
  plain = spread(loop_grpo(data), data.response_mask)
  assert (np.sign(got) * np.sign(plain) >= 0).all()


@pytest.mark.parametrize('clip', [0.2, 0.0])
def test_sipo_adds_a_clipped_contrast_also_where_all_failed(clip):
  data = step_data()
  want = loop_sipo(data, loop_grpo(data), 0.5, clip or np.inf)
  got = credit('sipo', data, gap_clip=clip)['advantages']
  assert_close(got, want)
  lost = (data.group_ids == 2) & (loop_grpo(data) == 0)
  same = data.group_ids == 7  # All scored alike.
  for rows in filter(np.any, (lost, same)):
    moved = got[rows & data.taught]
    assert np.abs(moved).max() > 0
    assert clip == 0 or np.abs(moved).max() <= 0.5 * clip + 1e-6


@pytest.mark.parametrize('share', [0.2, 0.6, 1.0])
@pytest.mark.parametrize('mix', [0.5, 1.0])
def test_ocsd_weighs_the_tokens_of_unsure_turns(share, mix):
  data = step_data()
  want = loop_ocsd(data, loop_grpo(data), mix, share)
  got = credit('ocsd', data, credit_mix=mix, unlikely_share=share)['advantages']
  assert_close(got, want)
  plain = spread(loop_grpo(data), data.response_mask)
  changed = (np.abs(got - plain) > 1e-6).any(axis=1)
  moved = {TURNS[i].trajectory for i in np.flatnonzero(changed)}
  counts = [sum(t.trajectory == name for t in TURNS) for name in moved]
  rows = changed.sum()
  assert 0 < rows <= sum(int(np.ceil(share * count)) for count in counts)


@pytest.mark.parametrize('floor', [0.0, 0.4])
def test_taspo_keeps_the_mean_of_an_episode(floor):
  data = step_data()
  plain = loop_grpo(data)
  want = loop_taspo(data, plain, None, kappa=floor)
  got = credit('taspo', data, gap_floor=floor)['advantages']
  assert_close(got, spread(want, data.response_mask))
  ratio = np.divide(got[:, 0], plain, out=np.ones(len(plain)), where=plain != 0)
  assert (np.abs(ratio - 1) <= 0.2 + 1e-6).all()
  assert np.abs(ratio - 1).max() > 0.01
  # With one sign of advantage in an episode its mean weight is 1.
  for name in set(data.trajectory_ids):
    rows = (data.trajectory_ids == name) & data.taught & (plain != 0)
    if rows.sum() > 1 and len({*np.sign(plain[rows])}) == 1:
      assert_close(ratio[rows].mean(), 1.0, rtol=1e-5)


@pytest.mark.parametrize('clip', [0.0, 0.3])
def test_the_outcome_signs_the_gap(clip):
  data = step_data()
  numbers = {'gap_coef': 0.7, 'gap_clip': clip}
  solved = np.where(data.successes, 1.0, -1.0)
  plain = loop_grpo(data)
  want = loop_agreed(data, solved, plain, 0.7, clip or np.inf)
  got = credit('opdvr', data, **numbers)['advantages']
  assert_close(got, want)
  taught = taught_tokens(data)
  assert (got[taught & (solved > 0)[:, None]] >= 0).all()
  assert (got[taught & (solved < 0)[:, None]] <= 0).all()
  raw = plain_of('grpd', data)
  want = loop_agreed(data, raw, raw, 0.7, clip or np.inf)
  assert_close(credit('grpd', data, **numbers)['advantages'], want)


@pytest.mark.parametrize('step, lam', [(0, 0.5), (50, 0.25), (100, 0.0)])
def test_ahead_teaches_failures_alone_and_is_warmed_down(step, lam):
  data = step_data(step)
  plain = loop_grpo(data)
  got = credit('ahead', data)['advantages']
  assert_close(got, loop_ahead(data, plain, lam))
  assert_close(got[data.successes], spread(plain, data.response_mask)[data.successes])


def test_rstg_teaches_groups_that_lost_everything():
  data = step_data()
  got = credit('rstg', data)['teaching']
  groups = data.group_ids
  lost = [not data.successes[groups == group].any() for group in groups]
  np.testing.assert_array_equal(got, data.taught & np.array(lost))
  assert got.any() and (got == 0)[data.taught].any()


# Controls.


@pytest.mark.parametrize('share', [0.2, 0.6, 1.0])
@pytest.mark.parametrize('amount', [-0.5, 0.3])
@pytest.mark.parametrize('policy', ['grpo', 'gigpo'])
def test_a_constant_is_added_to_the_least_likely_tokens(policy, amount, share):
  data = step_data()
  name = 'low-prob' if policy == 'grpo' else f'{policy}+low-prob'
  got = credit(name, data, unlikely_advantage=amount, unlikely_share=share)
  want = credit(policy, data)['advantages'].astype(float)
  for place in loop_unlikely(data, share, taught_tokens(data)):
    want[place] += amount
  assert_close(got['advantages'], want)


def test_a_teacher_has_no_say_in_the_least_likely_tokens():
  data = step_data()
  other = data._replace(teacher_logprobs=data.teacher_logprobs[::-1] - 3)
  assert_same(credit('low-prob', data), credit('low-prob', other))


@pytest.mark.parametrize('share', [0.2, 1.0])
def test_opsa_pushes_the_unsure_tokens_most(share):
  data = step_data()
  places = loop_unlikely(data, share, data.response_mask)
  entropies = [data.old_entropy[place] for place in places]
  want, total = np.zeros(data.response_mask.shape), data.response_mask.sum()
  for place in places:
    rank = (data.old_entropy[place] - min(entropies)) / np.ptp(entropies)
    want[place] = (-0.5 - 0.5 * rank) * total / len(places)
  got = credit('opsa', data, unlikely_share=share)['advantages']
  assert_close(got, want, rtol=1e-5)
  assert find('opsa').needs_entropy(hyper_of('opsa'))
  ignored = data._replace(scores=-data.scores, rewards=-data.rewards)
  assert_same(credit('opsa', ignored)['advantages'], credit('opsa', data)['advantages'])


def test_equal_entropies_all_count_as_the_largest_and_ties_go_together():
  mask = np.array([[True, True, True, False]])
  logprobs = np.array([[-2.0, -2.0, -1.0, np.nan]])
  got = outcome.opsa(logprobs, np.zeros((1, 4)), mask, share=0.3, amount=-0.5)
  np.testing.assert_allclose(got, [[-1.5, -1.5, 0, 0]])
  nothing = np.zeros((1, 4), bool)
  assert not outcome.unlikely(logprobs, nothing, share=0.5).any()


@pytest.mark.parametrize('name', ['sdar', 'sdar-advantage', 'icsd', 'rlsd', 'opid'])
def test_a_teacher_that_sees_what_its_student_does_has_no_gap(name):
  """Then a gate is 1/2 to the bit, and credit by the gap is none at all."""
  data = step_data()
  data = data._replace(
    teacher_logprobs=data.old_logprobs, taught=np.ones(len(TURNS), bool)
  )
  got = credit(name, data, context='none')
  if 'gate' in got:
    np.testing.assert_array_equal(got['gate'][data.response_mask], 0.5)
    assert got['gate_mean'] == 0.5
  assert_same(got['advantages'], credit('grpo', data)['advantages'])


@pytest.mark.parametrize('name', ['sdar-none', 'sdar-other-task', 'sdar-shuffled'])
def test_a_control_is_sdar_but_for_what_its_teacher_sees(name):
  row, sdar = ALGORITHMS[name], ALGORITHMS['sdar']
  assert row.distillation is sdar.distillation
  own = dict(row.all_settings)
  context = own.pop('algorithm.context')
  assert own == dict(sdar.all_settings)
  assert context == name.removeprefix('sdar-').replace('-', '_')
  same = find(name).scores_itself(hyper_of(name))
  assert same == (name == 'sdar-none')


def test_a_teacher_with_other_weights_has_scores_of_its_own():
  row = find('sdar')
  for weights in ('ema', 'initial', 'given'):
    hyper = hyper_of('sdar', context='none', teacher_weights=weights)
    assert not row.scores_itself(hyper)
  assert find('low-prob').scores_itself(hyper_of('low-prob'))
  assert not row.scores_itself(hyper_of('sdar'))


# Retirement.


def run(gaps, successes, **numbers):
  """The memory after each of the steps with these gaps and rates of success."""
  hyper, memory, out = hyper_of('retire-opd', **numbers), {}, []
  for gap, rate in zip(gaps, successes, strict=True):
    data = step_data(memory=memory)
    solved = np.arange(len(TURNS)) < round(rate * len(TURNS))
    data = data._replace(
      teacher_logprobs=data.old_logprobs + gap,
      successes=solved,
      trajectory_ids=np.arange(len(TURNS)),
      group_ids=np.zeros(len(TURNS), int),
    )
    memory = remembered(find('retire-opd'), hyper, data)
    out.append(memory)
  return out


def test_a_teacher_retires_where_the_gap_stands_still_and_its_student_succeeds():
  now = {'retire_decay': 0.0, 'retire_success': 0.5, 'retire_slope': 0.1}
  shares = lambda *steps: [memory['share'] for memory in run(*steps, **now)]
  assert shares([1.0, 0.5, 0.25], [1, 1, 1]) == [1, 1, 1]  # It still falls.
  assert shares([1.0, 1.0, 1.0], [0.2, 0.2, 0.2]) == [1, 1, 1]  # It is still needed.
  assert shares([1.0, 0.95, 0.1, 0.05], [0.6, 0.6, 0, 0]) == [1, 0, 0, 0]  # For good.
  assert shares([1.0, 0.5, 0.5], [1, 1, 1]) == [1, 1, 0]


def test_a_retirement_reads_averages_over_steps():
  slow = {'retire_decay': 0.9, 'retire_success': 0.6, 'retire_slope': 0.0}
  found = run([1.0, 2.0, 3.0], [0.0, 1.0, 1.0], **slow)
  assert_close(found[-1]['gap'], 0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 3.0)
  assert_close(found[-1]['success'], 0.9 * 0.1 + 0.1)
  assert [memory['share'] for memory in found] == [1, 1, 1]


def test_a_retired_teacher_is_remembered_and_weighs_nothing():
  nobody = np.zeros(len(TURNS), bool)
  kept = {'gap': 0.5, 'success': 0.7, 'share': 0.0}
  data = step_data(taught=nobody, memory=kept)
  assert remembered(find('retire-opd'), hyper_of('retire-opd'), data) == kept
  got = credit('retire-opd', step_data(memory=kept))
  assert got['distill_scale'] == 0 and credit('retire-opd', data)['distill_scale'] == 0
  assert remembered(find('sdar'), hyper_of('sdar'), step_data(memory=kept)) == {}
