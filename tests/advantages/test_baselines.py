import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.advantages import baselines, grpo

EPS = 1e-6
ROWS = 12
row = st.tuples(
  st.sampled_from([0, 7, -3]),  # Group.
  st.integers(0, 2),  # Trajectory within the group.
  st.sampled_from([0.0, -0.1, 10.0, 9.9, 0.3]),  # Score.
  st.integers(0, 2),  # Anchor.
  st.booleans(),  # A real row.
)
tables = st.lists(row, min_size=ROWS, max_size=ROWS)


def columns(table):
  groups, members, scores, anchors, mask = map(np.array, zip(*table))
  trajectories = groups * 10 + members
  return groups, trajectories, scores.astype(float), anchors, mask


def loop_statistics(groups, trajectories, scores, mask, over):
  """group -> the scores that its statistics count."""
  counted, seen = {}, set()
  for group, trajectory, score, real in zip(groups, trajectories, scores, mask):
    if not real or (over == 'trajectories' and (group, trajectory) in seen):
      continue
    seen.add((group, trajectory))
    counted.setdefault(group, []).append(score)
  return counted


def loop_group_relative(groups, trajectories, scores, mask, over, divide):
  counted = loop_statistics(groups, trajectories, scores, mask, over)
  out = np.zeros(len(scores))
  for i, group in enumerate(groups):
    if not mask[i]:
      continue
    peers = counted[group]
    if len(peers) == 1:
      out[i] = scores[i] / (1 + EPS) if divide else scores[i]
    elif divide:
      flat = len(set(peers)) == 1
      spread = np.std(peers, ddof=1) + EPS
      out[i] = 0.0 if flat else (scores[i] - np.mean(peers)) / spread
    else:
      out[i] = scores[i] - np.mean(peers)
  return out


@pytest.mark.parametrize('over', grpo.STATISTICS_OVER)
@pytest.mark.parametrize('divide', [False, True])
def test_group_relative_equals_a_loop(over, divide):
  settings_ = {'statistics_over': over, 'divide_by_std': divide}

  @settings(max_examples=60, deadline=None)
  @given(tables)
  def check(table):
    groups, trajectories, scores, _, mask = columns(table)
    want = loop_group_relative(groups, trajectories, scores, mask, over, divide)
    arrays = (scores, groups, trajectories, mask)
    got = grpo.group_relative(*arrays, **settings_)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)

  check()


@settings(max_examples=60, deadline=None)
@given(tables)
def test_rloo_subtracts_the_mean_of_the_others(table):
  groups, trajectories, scores, _, mask = columns(table)
  got = baselines.rloo(scores, groups, trajectories, mask)
  for i in range(ROWS):
    others = [
      scores[j] for j in range(ROWS) if j != i and mask[j] and groups[j] == groups[i]
    ]
    want = scores[i] - (np.mean(others) if others else 0.0)
    np.testing.assert_allclose(got[i], want if mask[i] else 0.0, atol=1e-12)


@pytest.mark.parametrize('divide', [False, True])
def test_gigpo_adds_the_comparison_of_equal_states(divide):
  @settings(max_examples=60, deadline=None)
  @given(tables)
  def check(table):
    groups, trajectories, scores, anchors, mask = columns(table)
    returns = scores * 0.7 + anchors
    want = loop_group_relative(groups, trajectories, scores, mask, 'rows', divide)
    pairs = groups * 100 + anchors
    step = loop_group_relative(pairs, trajectories, returns, mask, 'rows', divide)
    sizes = {pair: np.sum((pairs == pair) & mask) for pair in pairs}
    alone = np.array([sizes[pair] == 1 for pair in pairs])
    want = want + 0.5 * np.where(alone, 0.0, step)
    got = baselines.gigpo(
      scores,
      returns,
      groups,
      trajectories,
      anchors,
      mask,
      step_weight=0.5,
      divide_by_std=divide,
    )
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)

  check()


def loop_pass_at_k(groups, trajectories, scores, mask, over, divide):
  out = np.zeros(len(scores))
  for group in set(groups[mask]):
    best, items = None, []
    for i in range(len(scores)):  # The statistic's items, in row order.
      seen = any(trajectories[i] == trajectories[j] for j in items)
      if mask[i] and groups[i] == group and not (over == 'trajectories' and seen):
        items.append(i)
    if len(items) < 2:
      continue
    best = max(items, key=lambda i: scores[i])
    second = max(scores[i] for i in items if i != best)
    lead = scores[best] - second
    if divide:
      lead /= np.std([scores[i] for i in items], ddof=1) + EPS
    for i in range(len(scores)):
      own = trajectories[i] == trajectories[best] and (over != 'rows' or i == best)
      if mask[i] and groups[i] == group and own:
        out[i] = lead
  return out


@pytest.mark.parametrize('over', grpo.STATISTICS_OVER)
@pytest.mark.parametrize('divide', [False, True])
def test_pass_at_k_pays_the_best_its_lead(over, divide):
  settings_ = {'statistics_over': over, 'divide_by_std': divide}

  @settings(max_examples=60, deadline=None)
  @given(tables)
  def check(table):
    groups, trajectories, scores, _, mask = columns(table)
    want = loop_pass_at_k(groups, trajectories, scores, mask, over, divide)
    arrays = (scores, groups, trajectories, mask)
    got = baselines.pass_at_k(*arrays, **settings_)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)

  check()


def test_two_turns_of_one_success_cancel_in_pass_at_k_over_rows():
  scores, groups = np.array([10.0, 10.0, 0.0]), np.zeros(3, int)
  arrays = (scores, groups, np.array([0, 0, 1]), np.ones(3, bool))
  np.testing.assert_array_equal(baselines.pass_at_k(*arrays), 0)
  got = baselines.pass_at_k(
    *arrays, statistics_over='trajectories', divide_by_std=False
  )
  np.testing.assert_array_equal(got, [10, 10, 0])


def test_pass_at_k_does_not_know_the_scale_of_rewards():
  rng = np.random.default_rng(4)
  scores, groups = rng.standard_normal(20), rng.integers(0, 3, 20)
  arrays = (groups, np.arange(20), np.ones(20, bool))
  want = baselines.pass_at_k(scores, *arrays)
  got = baselines.pass_at_k(100 * scores - 7, *arrays)
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('score', [0.1, -0.1, 10.0, 1e4 / 3])
@pytest.mark.parametrize('size', [2, 3, 7, 11])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_equal_scores_give_exactly_zero(score, size, dtype):
  scores = np.full(size, score, dtype)
  ids, mask = np.zeros(size, int), np.ones(size, bool)
  for over in grpo.STATISTICS_OVER:
    got = grpo.group_relative(scores, ids, np.arange(size), mask, statistics_over=over)
    np.testing.assert_array_equal(got, 0)
  np.testing.assert_array_equal(baselines.rloo(scores, ids, ids + 1, mask)[1:], 0)
  step = baselines.gigpo(scores, scores, ids, np.arange(size), ids, mask)
  np.testing.assert_array_equal(step, 0)
  best = baselines.pass_at_k(scores, ids, np.arange(size), mask)
  np.testing.assert_array_equal(best, 0)


def test_a_singleton_group_keeps_its_score():
  one, ids = np.array([10.0]), np.array([3])
  mask = np.array([True])
  np.testing.assert_allclose(grpo.group_relative(one, ids, ids, mask), 10 / (1 + EPS))
  assert grpo.group_relative(one, ids, ids, mask, divide_by_std=False) == 10
  assert baselines.rloo(one, ids, ids, mask) == 10
  # Two rows of one trajectory are one item of statistics over trajectories.
  got = grpo.group_relative(
    np.array([10.0, 9.9]),
    np.array([3, 3]),
    np.array([5, 5]),
    np.array([True, True]),
    statistics_over='trajectories',
    divide_by_std=False,
  )
  np.testing.assert_array_equal(got, [10.0, 9.9])


def test_penalties_of_flat_trajectories_are_muted_unless_asked():
  arrays = (np.array([0.0, -0.1, 0.0]), np.zeros(3, int), np.array([0, 0, 1]))
  mask = np.ones(3, bool)
  got = grpo.group_relative(*arrays, mask, statistics_over='trajectories')
  np.testing.assert_array_equal(got, 0)
  got = grpo.group_relative(
    *arrays, mask, statistics_over='trajectories', mute_zero_std=False
  )
  np.testing.assert_allclose(got, [0, -0.1 / EPS, 0])


@pytest.mark.parametrize('over', grpo.STATISTICS_OVER)
def test_rows_may_come_in_any_order(over):
  rng = np.random.default_rng(1)
  trajectories = rng.integers(0, 9, 40)
  groups = trajectories // 3
  # Equal scores within a trajectory, so that any of its rows may be the first.
  scores = rng.standard_normal(9)[trajectories]
  mask = np.ones(40, bool)
  want = grpo.group_relative(scores, groups, trajectories, mask, statistics_over=over)
  order = rng.permutation(40)
  got = grpo.group_relative(
    scores[order], groups[order], trajectories[order], mask, statistics_over=over
  )
  np.testing.assert_allclose(got, want[order], rtol=1e-12)


def test_padding_rows_change_nothing_whatever_they_hold():
  rng = np.random.default_rng(2)
  scores, groups = rng.standard_normal(10), rng.integers(0, 3, 10)
  trajectories, mask = np.arange(10), np.ones(10, bool)
  want = grpo.group_relative(scores, groups, trajectories, mask)
  padded = (
    np.insert(scores, [0, 5, 10], [np.nan, np.inf, 1e30]),
    np.insert(groups, [0, 5, 10], groups[:3]),
    np.insert(trajectories, [0, 5, 10], trajectories[:3]),
    np.insert(mask, [0, 5, 10], False),
  )
  got = grpo.group_relative(*padded)
  np.testing.assert_allclose(got[padded[3]], want, rtol=1e-12)
  np.testing.assert_array_equal(got[~padded[3]], 0)


def test_uniform_credit_covers_the_response_only():
  mask = np.array([[0, 1, 1], [0, 0, 0]], bool)
  got = grpo.uniform_credit(np.array([2.0, np.nan]), mask)
  np.testing.assert_array_equal(got, [[0, 2, 2], [0, 0, 0]])


def test_memory_grows_with_rows_not_with_their_square():
  rows = 20_000
  rng = np.random.default_rng(3)
  ids = np.sort(rng.integers(0, 500, rows))
  arrays = (rng.standard_normal(rows), ids, rng.integers(0, 4000, rows))
  tracemalloc.start()
  grpo.group_relative(*arrays, np.ones(rows, bool), statistics_over='trajectories')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1000 * rows  # A [B, B] array of bytes would be 20,000 a row.


def test_wrong_inputs_are_named():
  ids, mask = np.zeros(3, int), np.ones(3, bool)
  with pytest.raises(ValueError, match='score of row 1 is nan'):
    grpo.group_relative(np.array([0.0, np.nan, 1.0]), ids, ids, mask)
  with pytest.raises(ValueError, match="statistics_over='batch'"):
    grpo.group_relative(np.zeros(3), ids, ids, mask, statistics_over='batch')
  with pytest.raises(ValueError, match='scores are int64, their mask bool'):
    grpo.group_relative(np.zeros(3, int), ids, ids, mask)
  with pytest.raises(ValueError, match='scores are float64, their mask int64'):
    grpo.group_relative(np.zeros(3), ids, ids, ids)
  with pytest.raises(ValueError, match=r'group_ids has shape \(2,\): must be \(3,\)'):
    grpo.group_relative(np.zeros(3), ids[:2], ids, mask)
