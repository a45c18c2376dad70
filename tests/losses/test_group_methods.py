import jax
import jax.numpy as jnp
import numpy as np
import pytest
from group_tables import EPS, columns, tables
from hypothesis import given, settings

from sdar_jax.advantages import baselines
from sdar_jax.losses import masked, policy


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


@pytest.mark.parametrize('over', baselines.STATISTICS_OVER)
@pytest.mark.parametrize('divide', [False, True])
def test_pass_at_k_pays_the_best_its_lead(over, divide):
  settings_ = {'statistics_over': over, 'divide_by_std': divide}
  device = jax.jit(lambda *arrays: baselines.pass_at_k(*arrays, **settings_))

  @settings(max_examples=60, deadline=None)
  @given(tables)
  def check(table):
    groups, trajectories, scores, _, mask = columns(table)
    want = loop_pass_at_k(groups, trajectories, scores, mask, over, divide)
    arrays = (scores, groups, trajectories, mask)
    got = baselines.pass_at_k(*arrays, **settings_)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    with jax.enable_x64(True):
      got = device(*map(jnp.asarray, arrays))
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


def test_dr_grpo_is_two_settings(make_batch):
  """No deviation, and a constant for a length: a token weighs the same everywhere."""
  batch = make_batch(9)
  rng = np.random.default_rng(9)
  scores, groups = rng.choice([0.0, 1.0], 8), np.arange(8) // 4
  mask, length = batch['response_mask'], 6
  old, new = (batch[name].astype(float) for name in ('old_logprobs', 'logprobs'))

  def objective(new):
    row = baselines.group_relative(
      scores, groups, np.arange(8), np.ones(8, bool), divide_by_std=False
    )
    credit = baselines.uniform_credit(row, mask)
    losses = policy.clipped_surrogate(
      new, old, credit, mask, clip_low=0.2, clip_high=0.2, dual_clip=1e9
    )
    mode = 'seq-mean-token-sum-norm'
    normaliser = masked.normaliser_of(mask, mode, length=length)
    return masked.aggregate(losses, mask, normaliser, mode)

  want, grad = 0.0, np.zeros((8, 6))
  for i in range(8):
    baseline = np.mean([scores[j] for j in range(8) if groups[j] == groups[i]])
    for t in np.flatnonzero(mask[i]):
      advantage, ratio = scores[i] - baseline, np.exp(new[i, t] - old[i, t])
      clipped = min(max(ratio, 0.8), 1.2)
      want -= min(advantage * ratio, advantage * clipped) / length
      if advantage * ratio <= advantage * clipped:
        grad[i, t] = -advantage * ratio / length
  with jax.enable_x64(True):
    for function in (objective, jax.jit(objective)):
      got = jax.value_and_grad(function)(new)
      np.testing.assert_allclose(got[0], want, rtol=1e-12)
      np.testing.assert_allclose(got[1], grad, rtol=1e-12, atol=1e-15)
