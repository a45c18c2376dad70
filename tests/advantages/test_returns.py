import numpy as np
import pytest

from sdar_jax.advantages import returns

ROWS = np.array([True, True, True, False])
MASK = (
  np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]) > 0
)


def test_step_returns_discount_the_rest_of_the_episode():
  rng = np.random.default_rng(0)
  trajectories, turns = rng.integers(0, 4, 30), rng.permutation(30)
  rewards, mask = rng.standard_normal(30), rng.random(30) < 0.8
  want = np.zeros(30)
  for i in np.flatnonzero(mask):
    later = [
      j
      for j in np.flatnonzero(mask)
      if trajectories[j] == trajectories[i] and turns[j] >= turns[i]
    ]
    for power, j in enumerate(sorted(later, key=lambda j: turns[j])):
      want[i] += 0.95**power * rewards[j]
  rewards[~mask] = np.nan
  arrays = (rewards, trajectories, turns, mask)
  got = returns.step_returns(*arrays, gamma=0.95)
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
  order = rng.permutation(30)
  got = returns.step_returns(*(array[order] for array in arrays), gamma=0.95)
  np.testing.assert_allclose(got, want[order], rtol=1e-12, atol=1e-14)


def test_huge_rewards_leave_no_trace_in_the_next_episode():
  rewards = np.array([1e30, 1e30, 0.25, 0.5], np.float32)
  ids, turns = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
  for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
    arrays = (rewards[order], ids[order], turns[order], np.ones(4, bool))
    got = returns.step_returns(*arrays, gamma=1.0)
    np.testing.assert_array_equal(got[np.argsort(order)[2:]], [0.75, 0.5])


def test_token_rewards_pay_at_the_end_and_charge_everywhere():
  rng = np.random.default_rng(1)
  scores, kl = np.array([2.0, -1.0, 0.5, np.nan]), rng.random((4, 5))
  want = np.zeros((4, 5))
  for i in range(3):
    tokens = np.flatnonzero(MASK[i])
    for t in tokens:
      want[i, t] = scores[i] * (t == tokens[-1]) - 0.1 * kl[i, t]
  kl[~MASK] = np.nan
  got = returns.token_rewards(scores, -0.1 * kl, MASK, ROWS)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_reinforce_plus_plus_discounts_and_whitens():
  scores, mask = np.array([2.0, -1.0, np.nan]), MASK[[0, 1, 3]]
  rows = np.array([True, True, False])
  earned = np.array([0.5, 1.0, 2.0, -0.25, -0.5, -1.0])  # gamma 1/2
  want = (earned - earned.mean()) / np.sqrt(earned.var(ddof=1) + 1e-8)
  arrays = (scores, mask, rows)
  got = returns.reinforce_plus_plus(*arrays, gamma=0.5)
  np.testing.assert_allclose(got[mask & rows[:, None]], want, rtol=1e-12)
  np.testing.assert_array_equal(got[~(mask & rows[:, None])], 0)


def test_reinforce_plus_plus_takes_rewards_of_tokens():
  scores, mask = np.array([2.0, -1.0, np.nan]), MASK[[0, 1, 3]]
  rows = np.array([True, True, False])
  more = np.random.default_rng(3).standard_normal(mask.shape)
  earned = []
  for i in range(2):
    tokens = np.flatnonzero(mask[i])
    paid = [more[i, t] + scores[i] * (t == tokens[-1]) for t in tokens]
    earned += [
      sum(0.5**k * later for k, later in enumerate(paid[start:]))
      for start in range(len(paid))
    ]
  want = (earned - np.mean(earned)) / np.sqrt(np.var(earned, ddof=1) + 1e-8)
  poison = np.where(mask & rows[:, None], more, np.nan)
  arrays = (scores, mask, rows)
  got = returns.reinforce_plus_plus(*arrays, gamma=0.5, token_rewards=poison)
  np.testing.assert_allclose(got[mask & rows[:, None]], want, rtol=1e-12)


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
def test_the_baseline_is_the_groups_mean(over):
  rng = np.random.default_rng(2)
  groups, trajectories = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 1, 2, 3, 4])
  scores, rows = rng.standard_normal(6), np.array([1, 1, 1, 1, 1, 0], bool)
  mask = rng.random((6, 7)) < 0.6
  centred, seen = scores.copy(), {}
  for i in range(5):
    if over == 'rows' or trajectories[i] not in [t for t, _ in seen.get(groups[i], [])]:
      seen.setdefault(groups[i], []).append((trajectories[i], scores[i]))
  for i in range(5):
    peers = [score for _, score in seen[groups[i]]]
    centred[i] -= np.mean(peers) if len(peers) > 1 else 0.0
  tokens = [(i, t) for i in range(5) for t in range(7) if mask[i, t]]
  values = np.array([centred[i] for i, _ in tokens])
  want = np.zeros((6, 7))
  for i, t in tokens:
    want[i, t] = (centred[i] - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
  scores[5] = np.inf
  arrays = (scores, groups, trajectories, mask, rows)
  got = returns.reinforce_plus_plus_baseline(*arrays, statistics_over=over)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('score', [0.1, 1e4 / 3])
def test_equal_scores_give_exactly_zero(score):
  scores, ids, rows = np.full(5, score, np.float32), np.zeros(5, int), np.ones(5, bool)
  mask = np.ones((5, 3), bool)
  got = returns.reinforce_plus_plus(scores, mask, rows, gamma=1.0)
  np.testing.assert_array_equal(got, 0)
  got = returns.reinforce_plus_plus_baseline(scores, ids, ids + 1, mask, rows)
  np.testing.assert_array_equal(got, 0)


def test_whitening_does_not_know_shift_or_scale():
  rng = np.random.default_rng(3)
  values, mask = rng.standard_normal((4, 6)), rng.random((4, 6)) < 0.7
  want = returns.whiten(values, mask)
  np.testing.assert_allclose(returns.whiten(3 - 50 * values, mask), -want, rtol=1e-6)
  np.testing.assert_allclose([want[mask].mean() + 1, want[mask].std(ddof=1)], 1, 1e-6)
  one = np.zeros((4, 6), bool)
  np.testing.assert_array_equal(returns.whiten(values, one), 0)
  one[2, 3] = True
  np.testing.assert_array_equal(returns.whiten(values, one), 0)


def loop_gae(rewards, values, mask, gamma, lam):
  advantages = np.zeros(mask.shape)
  for i in range(mask.shape[0]):
    following, carried = 0.0, 0.0
    for t in reversed(np.flatnonzero(mask[i])):
      delta = rewards[i, t] + gamma * following - values[i, t]
      carried = delta + gamma * lam * carried
      advantages[i, t], following = carried, values[i, t]
  return advantages, advantages + np.where(mask, values, 0.0)


@pytest.mark.parametrize(
  ('gamma', 'lam'), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.0, 1.0)]
)
def test_gae_equals_a_loop(gamma, lam):
  rng = np.random.default_rng(5)
  holes = np.array([[1, 0, 1, 0, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]], bool)
  mask = np.concatenate([MASK, holes])
  rewards, values = rng.standard_normal((2, *mask.shape))
  want = loop_gae(rewards, values, mask, gamma, lam)
  rewards, values = (np.where(mask, array, np.nan) for array in (rewards, values))
  arrays = (rewards, values, mask)
  got = returns.gae(*arrays, gamma=gamma, gae_lambda=lam)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-14)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-12, atol=1e-14)


def test_gae_of_the_paper_is_return_minus_value():
  scores, values = np.array([1.0, 0.0, -2.0, 9.0]), np.full((4, 5), 0.25)
  rewards = returns.token_rewards(scores, 0 * values, MASK, ROWS)
  mask = MASK & ROWS[:, None]
  advantages, targets = returns.gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
  np.testing.assert_array_equal(targets, scores[:, None] * mask)
  np.testing.assert_array_equal(advantages, (scores[:, None] - 0.25) * mask)
