import numpy as np
import pytest

from sdar_jax.advantages import returns, shaping

EPS = 1e-8


def make(seed, rows=9, tokens=5):
  rng = np.random.default_rng(seed)
  mask = rng.random((rows, tokens)) < 0.7
  mask[:, 1] = True
  mask[-1] = False
  teacher, ref = rng.standard_normal((2, rows, tokens)) - 2
  poison = lambda array: np.where(mask, array, np.nan)
  return poison(teacher), poison(ref), mask, rng


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize('baseline', shaping.BASELINES)
@pytest.mark.parametrize('scale', shaping.SCALES)
def test_teacher_rewards_equal_a_loop(everywhere, baseline, scale):
  teacher, _, mask, _ = make(0)
  want = np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    peers = teacher[i][mask[i]] if baseline == 'row' else teacher[mask]
    want[i, t] = teacher[i, t] - peers.mean()
  stds = {
    'batch': lambda i: want[mask].std(ddof=1) + EPS,
    'row': lambda i: want[i][mask[i]].std() + EPS,
    'none': lambda i: 1.0,
  }
  stds = [stds[scale](i) if mask[i].any() else 1.0 for i in range(len(mask))]
  want = want / np.array(stds)[:, None]
  settings = {'baseline': baseline, 'scale': scale}
  for got in everywhere(shaping.teacher_rewards, teacher, mask, **settings):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('over', shaping.MEANS_OVER)
def test_the_teachers_value_equals_a_loop(everywhere, over):
  teacher, _, mask, rng = make(1)
  earned, groups = rng.standard_normal(9), np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
  means = [teacher[i][mask[i]].mean() for i in range(8)]
  overall = teacher[mask].mean() if over == 'tokens' else np.mean(means)
  alpha = sigmoid((np.array(means) - overall) / 0.5)
  want = np.zeros(9)
  for i in range(8):
    peers = [j for j in range(8) if groups[j] == groups[i]]
    if len(peers) > 1:
      a, r = alpha[peers], earned[peers]
      want[i] = (a @ r) / a.sum() - ((1 - a) @ r) / (1 - a).sum()
  assert want[7] == 0 and (want[:7] != 0).all()  # A group of one real row has 0.
  earned[8] = np.nan
  arrays = (teacher, mask, earned, groups)
  settings = {'temperature': 0.5, 'mean_over': over}
  for got in everywhere(shaping.teacher_value, *arrays, **settings):
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
  order = rng.permutation(9)
  got = shaping.teacher_value(*(array[order] for array in arrays), **settings)
  np.testing.assert_allclose(got, want[order], rtol=1e-6, atol=1e-9)


def test_equal_returns_make_no_teacher_useful():
  teacher, _, mask, _ = make(2)
  got = shaping.teacher_value(
    teacher, mask, np.full(9, 1e4 / 3), np.zeros(9, int), temperature=1.0
  )
  np.testing.assert_array_equal(got, 0)
  np.testing.assert_array_equal(
    shaping.value_gate(got, mask, gate_scale=2.0), 0.5 * mask
  )


def test_the_value_scales_with_rewards_and_turns_with_their_sign():
  teacher, _, mask, rng = make(3)
  earned, groups = rng.standard_normal(9), np.arange(9) // 3
  value = lambda r: shaping.teacher_value(teacher, mask, r, groups, temperature=1.0)
  np.testing.assert_allclose(value(-10 * earned), -10 * value(earned), rtol=1e-12)


def test_the_privilege_gate_equals_a_loop(everywhere):
  teacher, ref, mask, _ = make(4)
  std = (teacher - ref)[mask].std(ddof=1) + EPS
  want = np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    want[i, t] = sigmoid(2 * (teacher[i, t] - ref[i, t]) / std)
  arrays = (teacher, ref, mask)
  for got in everywhere(shaping.privilege_gate, *arrays, gate_scale=2.0):
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_value_gate_and_the_sum(everywhere):
  _, _, mask, rng = make(5)
  value = rng.standard_normal(9)
  want = sigmoid(2 * value)[:, None] * mask
  for got in everywhere(shaping.value_gate, value, mask, gate_scale=2.0):
    np.testing.assert_allclose(got, want, rtol=1e-12)
  rewards, signal = rng.standard_normal((2, *mask.shape))
  for got in everywhere(
    shaping.shaped_rewards, rewards, signal, want, shaping_coef=0.1
  ):
    np.testing.assert_allclose(got, rewards + 0.1 * want * signal, rtol=1e-12)


def test_a_row_gate_over_a_row_baseline_pays_a_row_nothing():
  """GRPO adds up a row's rewards, so it cannot see this shaping; GAE can."""
  teacher, ref, mask, rng = make(6)
  signal = shaping.teacher_rewards(teacher, mask)
  by_row = shaping.value_gate(rng.standard_normal(9), mask, gate_scale=2.0)
  by_token = shaping.privilege_gate(teacher, ref, mask, gate_scale=2.0)
  zero = np.zeros(mask.shape)
  rows = shaping.shaped_rewards(zero, signal, by_row, shaping_coef=1.0)
  np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-12)
  tokens = shaping.shaped_rewards(zero, signal, by_token, shaping_coef=1.0)
  assert np.abs(tokens.sum(axis=1)).max() > 0.1
  seen, _ = returns.gae(rows, zero, mask, gamma=1.0, gae_lambda=1.0)
  assert np.abs(seen).max() > 0.1


@pytest.mark.parametrize('level', [1e4, -1e4])
def test_wild_log_probabilities_are_finite(level):
  teacher, ref, mask, rng = make(7)
  teacher, ref = (level * array.astype(np.float32) for array in (teacher, ref))
  earned, groups = rng.standard_normal(9).astype(np.float32), np.zeros(9, int)
  value = shaping.teacher_value(teacher, mask, earned, groups, temperature=1.0)
  results = [value, shaping.value_gate(1e4 * value, mask, gate_scale=2.0)]
  results.append(shaping.privilege_gate(teacher, ref, mask, gate_scale=2.0))
  for scale in shaping.SCALES:
    results.append(shaping.teacher_rewards(teacher, mask, scale=scale))
  for result in results:
    assert np.isfinite(result).all() and result.dtype == np.float32


def test_equal_log_probabilities_and_single_tokens_pay_nothing():
  mask = np.array([[1, 1, 1], [0, 1, 0]], bool)
  for scale in shaping.SCALES:
    got = shaping.teacher_rewards(np.full((2, 3), -1.5), mask, scale=scale)
    np.testing.assert_array_equal(got, 0)


def test_wrong_arguments_are_named():
  teacher, _, mask, _ = make(8)
  with pytest.raises(ValueError, match="baseline='turn'"):
    shaping.teacher_rewards(teacher, mask, baseline='turn')
  with pytest.raises(ValueError, match="scale='std'"):
    shaping.teacher_rewards(teacher, mask, scale='std')
  with pytest.raises(ValueError, match="mean_over='turns'"):
    shaping.teacher_value(
      teacher, mask, np.zeros(9), np.zeros(9, int), temperature=1.0, mean_over='turns'
    )
