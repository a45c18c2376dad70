"""Credit of the teachers' sides: what they add to, or make of, advantages."""

import numpy as np
import pytest
from algorithm_cases import (
  PLAIN_POLICIES,
  TEACHERS,
  TURNS,
  assert_close,
  assert_same,
  credit,
  hyper_of,
  policy_of,
  step_data,
)
from credit_loops import (
  LOOPS,
  gap_of,
  loop_adrs,
  loop_discounted,
  loop_gae,
  loop_gigpo,
  loop_grpo,
  loop_rlsd,
  loop_whiten,
  peers,
  spread,
)

from sdar_jax.methods.table import ALGORITHMS, find


@pytest.mark.parametrize('step, lam', [(0, 0.5), (50, 0.25), (99, 0.005), (100, 0.0)])
def test_rlsd_credit_is_warmed_down_to_grpo(step, lam):
  data = step_data(step)
  got = credit('rlsd', data)
  assert_close(got['advantages'], loop_rlsd(data, loop_grpo(data), lam))
  assert_close(got['distill_scale'], lam / 0.5)
  moved = got['advantages'] != credit('grpo', data)['advantages']
  assert moved.any() == (lam > 0)


@pytest.mark.parametrize('steps', [0, 1, 50, 100])
def test_the_teachers_share_falls_in_a_line(steps):
  for step in (0, 1, 25, 49, 50, 99, 100, 101, 10**6):
    left = steps - step if steps else 1  # Of the steps that are warmed down.
    got = credit('skill-sd', step_data(step), warmdown_steps=steps)['distill_scale']
    assert_close(got, max(left, 0) / (steps or 1))


@pytest.mark.parametrize('step, same', [(0, False), (99, False), (100, True)])
def test_rlsd_as_released_is_grpo_from_iteration_100_of_150(step, same):
  data = step_data(step=step)
  assert find('rlsd').needs_teacher(hyper_of('rlsd'))  # Its pass is paid to the end.
  rlsd, grpo = (credit(name, data)['advantages'] for name in ('rlsd', 'grpo'))
  assert np.array_equal(rlsd, grpo) == same


@pytest.mark.parametrize('name', ['agent-opsd', 'grsd'])
@pytest.mark.parametrize('mix', [0.5, 1.0])
def test_credit_of_whole_turns(name, mix):
  data = step_data()
  want = spread(LOOPS[name](data, loop_grpo(data), mix), data.response_mask)
  got = credit(name, data, credit_mix=mix)['advantages']
  assert_close(got, want, rtol=2e-5, atol=2e-6)  # Beliefs of 1e-4 divide by little.


@pytest.mark.parametrize('clip', [0.0, 0.4])
def test_opid_adds_the_gap(clip):
  data = step_data()
  want = spread(loop_grpo(data), data.response_mask)
  for i in range(len(want)):
    gaps = gap_of(data, i)
    want[i, : len(gaps)] += 0.3 * (np.clip(gaps, -clip, clip) if clip else gaps)
  got = credit('opid', data, gap_coef=0.3, gap_clip=clip)['advantages']
  assert_close(got, want)


@pytest.mark.parametrize('tau', [2.0, 0.5])
def test_adrs_rewards_tokens_before_advantages_are_estimated(tau):
  data = step_data()
  rewards, gates = loop_adrs(data, 0.3, tau)
  got = credit('adrs', data, shaping_coef=0.3, gate_scale=tau)
  want = loop_grpo(data, scores=data.scores + rewards.sum(1))
  assert_close(got['advantages'], spread(want, data.response_mask))
  assert_close(got['gate'], spread(gates, data.response_mask))
  # Where all did equally well the teacher's rewards are all there is.
  same = data.group_ids == 7
  assert (credit('grpo', data)['advantages'][same] == 0).all()
  assert np.abs(got['advantages'][same]).max() > 0.5


def test_adrs_rewards_are_placed_where_a_method_looks_at_tokens():
  data = step_data(step=0)
  rewards, _ = loop_adrs(data, 0.3)
  paid = rewards.copy()
  for i, turn in enumerate(TURNS):
    paid[i, turn.tokens - 1] += data.scores[i]
  got = credit('ppo+adrs', data, shaping_coef=0.3, gamma=0.9, gae_lambda=0.7)
  advantages = loop_gae(paid, data, 0.9, 0.7)
  assert_close(got['advantages'], loop_whiten(advantages, data.response_mask))
  got = credit('reinforce+++adrs', data, shaping_coef=0.3, gamma=0.9)
  returns = loop_gae(paid, data._replace(old_values=0 * data.old_values), 0.9, 1.0)
  assert_close(got['advantages'], loop_whiten(returns, data.response_mask))
  got = credit('gigpo+adrs', data, shaping_coef=0.3)
  shifted = data._replace(scores=data.scores + rewards.sum(1))
  states = [(t.place, t.visit) for t in TURNS]
  want = loop_gigpo(shifted, states)
  assert_close(got['advantages'], spread(want, data.response_mask))


@pytest.mark.parametrize('similarity', [0.0, 0.9])
def test_ucob_teaches_the_view_that_did_worse(similarity):
  data = step_data()
  states = [t.place if similarity else (t.place, t.visit) for t in TURNS]
  returns, want = loop_discounted(data, 0.95), np.zeros(len(TURNS))
  for i in np.flatnonzero(data.taught):
    views = {True: [], False: []}
    for j in peers(data, i):
      if states[j] == states[i]:
        views[bool(data.sees_skills[j])].append(returns[j])
    own = bool(data.sees_skills[i])
    if views[True] and views[False]:
      lead = np.mean(views[not own]) - np.mean(views[own])
      want[i] = min(lead / 2.0, 2.0) if lead > 0.5 else 0
  got = credit('ucob', data, anchor_similarity=similarity)
  assert_close(got['teaching'], want)
  assert_same(got['advantages'], credit('grpo', data)['advantages'])
  if not similarity:  # Both directions: 41's skills misled it, 70 lacked them.
    np.testing.assert_allclose(got['teaching'][[2, 5]], [0.4875, 2.0], rtol=1e-6)
  none = credit('ucob', data._replace(taught=np.zeros(len(TURNS), bool)))
  np.testing.assert_array_equal(none['teaching'], 0)


UNWEIGHTED = [n for n in TEACHERS if ALGORITHMS[n].distillation.weights is None]


@pytest.mark.parametrize('name', UNWEIGHTED)
def test_rows_without_a_lesson_keep_their_advantages(name):
  data = step_data()
  divides = hyper_of(name).divide_by_std
  plain = credit(policy_of(name), data, divide_by_std=divides)['advantages']
  got = credit(name, data)
  np.testing.assert_array_equal(got['teaching'], data.taught)
  # They compare the turns of an episode, pay some of a group, or take two means.
  if name not in ('agent-opsd', 'adrs', 'rlcsd'):
    assert_same(got['advantages'][~data.taught], plain[~data.taught])
  nobody = data._replace(taught=np.zeros(len(TURNS), bool))
  got = credit(name, nobody)
  assert_same(got['advantages'], plain)
  np.testing.assert_array_equal(got['teaching'], 0)
  assert got['gate_mean'] == 0 and not got.get('gate', np.zeros(1)).any()


@pytest.mark.parametrize('teacher', LOOPS)
@pytest.mark.parametrize('gamma', [1.0, 0.8])
def test_teachers_of_rows_meet_advantages_of_tokens(teacher, gamma):
  """What reshaping the mean of a row adds to it is added to the row's tokens."""
  data = step_data()
  plain = credit('reinforce++', data, gamma=gamma)['advantages'].astype(float)
  means = plain.sum(1) / data.response_mask.sum(1)
  shaped = LOOPS[teacher](data, means, 0.5)
  shaped = shaped if shaped.ndim == 2 else spread(shaped, data.response_mask)
  want = np.where(data.response_mask, plain + shaped - means[:, None], 0)
  got = credit(f'reinforce+++{teacher}', data, gamma=gamma)['advantages']
  assert_close(got, want, rtol=2e-5, atol=2e-6)
  alone = data.response_mask.sum(1) == 1
  assert_close(got[alone], shaped[alone], rtol=2e-5)
  if gamma == 1:
    assert_close(got, shaped, rtol=2e-5)
    assert (np.sign(got) == np.sign(plain)).all()


@pytest.mark.parametrize('teacher', LOOPS)
def test_a_teacher_of_rows_meets_any_policy(teacher):
  data = step_data()
  states = [(t.place, t.visit) for t in TURNS]
  shaped = LOOPS[teacher](data, loop_gigpo(data, states), 0.5)
  shaped = shaped if shaped.ndim == 2 else spread(shaped, data.response_mask)
  got = credit(f'gigpo+{teacher}', data)['advantages']
  assert_close(got, shaped, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('policy', PLAIN_POLICIES)
def test_a_teacher_with_a_term_of_its_own_leaves_the_policy_s_credit(policy):
  data = step_data()
  want, changed = credit(policy, data), set()
  for teacher in TEACHERS:
    name, side = f'{policy}+{teacher}', ALGORITHMS[teacher].distillation
    if side.credit is side.rewards is None and name not in ALGORITHMS:
      got = credit(name, data)
      for field in {'advantages', 'value_targets'} & set(want):
        if (got[field] != want[field]).any():
          changed.add(name)
  assert not changed
