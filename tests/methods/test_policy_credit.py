"""Credit of the policies' sides: a step's rewards to advantages of tokens."""

import math

import numpy as np
import pytest
from algorithm_cases import (
  TURNS,
  assert_close,
  assert_same,
  credit,
  hyper_of,
  step_data,
)
from credit_loops import loop_gae, loop_gigpo, loop_grpo, loop_rloo, loop_whiten, spread


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
@pytest.mark.parametrize('name', ['grpo', 'dapo', 'gspo', 'skill-grpo', 'skill-grpo*'])
def test_grpo_credit(name, over):
  data = step_data()
  want = spread(loop_grpo(data, over), data.response_mask)
  got = credit(name, data, statistics_over=over)
  assert_close(got['advantages'], want)
  assert got['advantages'].dtype == np.float32
  np.testing.assert_array_equal(got['teaching'], 0)
  assert 'value_targets' not in got


def test_grpo_credit_in_numbers():
  got = credit('grpo', step_data())['advantages'][:, 0]
  # 10, 10, 2.5, 2.4, 2.5, 0 and 0 have the mean 3.914286 and the deviation 4.301329.
  four = [1.414845, 1.414845, -0.328802, -0.352051, -0.328802, -0.910018, -0.910018]
  assert_close(got[[0, 1, 5, 6, 7, 9, 10]], four, atol=1e-6)
  # 0, -0.1 and 0 have the deviation 0.057735: a penalty is all there is.
  assert_close(got[[11, 12, 13]], [0.577340, -1.154681, 0.577340], atol=1e-6)
  np.testing.assert_array_equal(got[[2, 3, 4, 8]], 0)  # 10 for all.
  assert_close(got[14], 10, rtol=2e-6)  # Alone: the score itself.


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
def test_credit_without_a_deviation(over):
  data = step_data()
  want = spread(loop_grpo(data, over, divide=False), data.response_mask)
  assert_close(credit('dr-grpo', data, statistics_over=over)['advantages'], want)
  want = spread(loop_rloo(data, over), data.response_mask)
  assert_close(credit('rloo', data, statistics_over=over)['advantages'], want)


def test_pass_at_k_pays_every_turn_of_the_best_its_lead():
  got = credit('grpo-passk', step_data())['advantages']
  # Of 10, 2.5 and 0 per trajectory: the deviation is 5.204165.
  lead = 7.5 / (math.sqrt(325 / 12) + 1e-6)
  want = np.zeros(got.shape)
  want[0, :3] = want[1, :2] = lead
  assert_close(got, want)


@pytest.mark.parametrize('gamma', [1.0, 0.8])
def test_reinforce_plus_plus_credit(gamma):
  data = step_data()
  returns = np.zeros(data.response_mask.shape)
  for i, turn in enumerate(TURNS):
    for t in range(turn.tokens):
      returns[i, t] = gamma ** (turn.tokens - 1 - t) * data.scores[i]
  want = loop_whiten(returns, data.response_mask)
  assert_close(credit('reinforce++', data, gamma=gamma)['advantages'], want)


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
def test_reinforce_plus_plus_baseline_credit(over):
  data = step_data()
  rows = loop_grpo(data, over, divide=False)
  want = loop_whiten(spread(rows, data.response_mask), data.response_mask)
  got = credit('reinforce++-baseline', data, statistics_over=over)
  assert_close(got['advantages'], want)


@pytest.mark.parametrize('similarity', [0.0, 0.9])
@pytest.mark.parametrize('divide', [True, False])
@pytest.mark.parametrize('weight', [1.0, 0.3])
def test_gigpo_credit(similarity, divide, weight):
  data = step_data()
  states = [t.place if similarity else (t.place, t.visit) for t in TURNS]
  want = loop_gigpo(data, states, weight=weight, divide=divide)
  got = credit(
    'gigpo',
    data,
    anchor_similarity=similarity,
    divide_by_std=divide,
    step_weight=weight,
  )
  assert_close(got['advantages'], spread(want, data.response_mask))


def test_ppo_credit_is_the_whitened_return_beyond_the_value():
  data = step_data()
  mask = data.response_mask
  got = credit('ppo', data)
  beyond = spread(data.scores, mask) - data.old_values
  assert_close(got['advantages'], loop_whiten(beyond, mask))
  assert_close(got['value_targets'], spread(data.scores, mask))


@pytest.mark.parametrize('kl_in', ['loss', 'reward'])
def test_ppo_credit_with_discounts(kl_in):
  data = step_data()
  rewards = np.zeros(data.response_mask.shape)
  for i, turn in enumerate(TURNS):
    if kl_in == 'reward':
      rewards[i, : turn.tokens] = -0.3 * data.old_kl[i, : turn.tokens]
    rewards[i, turn.tokens - 1] += data.scores[i]
  advantages = loop_gae(rewards, data, 0.9, 0.7)
  got = credit('ppo', data, gamma=0.9, gae_lambda=0.7, kl_in=kl_in, kl_coef=0.3)
  assert_close(got['advantages'], loop_whiten(advantages, data.response_mask))
  targets = np.where(data.response_mask, advantages + data.old_values, 0)
  assert_close(got['value_targets'], targets)


def test_ppo_kl_reward_takes_the_kl_off_every_token():
  data = step_data()
  assert hyper_of('ppo-kl-reward').kl_kind == 'k1'
  got = credit('ppo-kl-reward', data, kl_coef=0.3)
  want = np.zeros(data.response_mask.shape)
  for i, turn in enumerate(TURNS):
    for t in range(turn.tokens):
      want[i, t] = data.scores[i] - 0.3 * sum(data.old_kl[i, t : turn.tokens])
  assert_close(got['value_targets'], want)
  beyond = want - data.old_values
  assert_close(got['advantages'], loop_whiten(beyond, data.response_mask))
  free = credit('ppo-kl-reward', data._replace(old_kl=None), kl_coef=0.0)
  assert_same(free, credit('ppo', data))


def test_kl_in_the_reward_comes_off_a_response_s_score():
  data = step_data()
  kl = [sum(data.old_kl[i, : t.tokens]) for i, t in enumerate(TURNS)]
  want = loop_grpo(data, scores=data.scores - 0.3 * np.array(kl))
  got = credit('grpo', data, kl_in='reward', kl_coef=0.3)['advantages']
  assert_close(got, spread(want, data.response_mask))
  free = credit('grpo', data._replace(old_kl=None), kl_in='reward', kl_coef=0.0)
  assert_same(free, credit('grpo', data))
