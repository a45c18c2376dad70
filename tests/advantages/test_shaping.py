import numpy as np
import pytest

from sdar_jax.advantages import shaping

EPS = 1e-8


def make(seed, rows=9, tokens=5):
  rng = np.random.default_rng(seed)
  mask = rng.random((rows, tokens)) < 0.7
  mask[:, 1] = True
  mask[-1] = False
  teacher = rng.standard_normal((rows, tokens)) - 2
  return np.where(mask, teacher, np.nan), mask, rng


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_teacher_rewards_equal_a_loop():
  teacher, mask, _ = make(0)
  values = [teacher[i, t] for i, t in zip(*np.nonzero(mask))]
  want = np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    want[i, t] = (teacher[i, t] - np.mean(values)) / (np.std(values, ddof=1) + EPS)
  got = shaping.teacher_rewards(teacher, mask)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_the_teachers_value_equals_a_loop():
  teacher, mask, rng = make(1)
  earned, groups = rng.standard_normal(9), np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
  means = [teacher[i][mask[i]].mean() for i in range(8)]
  alpha = sigmoid((np.array(means) - np.mean(means)) / 0.5)
  want = np.zeros(9)
  for i in range(8):
    peers = [j for j in range(8) if groups[j] == groups[i]]
    if len(peers) > 1:
      a, r = alpha[peers], earned[peers]
      want[i] = (a @ r) / a.sum() - ((1 - a) @ r) / (1 - a).sum()
  assert want[7] == 0 and (want[:7] != 0).all()  # A group of one real row has 0.
  earned[8] = np.nan
  arrays = (teacher, mask, earned, groups)
  got = shaping.teacher_value(*arrays, temperature=0.5)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
  order = rng.permutation(9)
  got = shaping.teacher_value(*(array[order] for array in arrays), temperature=0.5)
  np.testing.assert_allclose(got, want[order], rtol=1e-6, atol=1e-9)


def test_equal_returns_make_no_teacher_useful():
  teacher, mask, _ = make(2)
  got = shaping.teacher_value(
    teacher, mask, np.full(9, 1e4 / 3), np.zeros(9, int), temperature=1.0
  )
  np.testing.assert_array_equal(got, 0)
  np.testing.assert_array_equal(
    shaping.value_gate(got, mask, gate_scale=2.0), 0.5 * mask
  )


def test_the_value_scales_with_rewards_and_turns_with_their_sign():
  teacher, mask, rng = make(3)
  earned, groups = rng.standard_normal(9), np.arange(9) // 3
  value = lambda r: shaping.teacher_value(teacher, mask, r, groups, temperature=1.0)
  np.testing.assert_allclose(value(-10 * earned), -10 * value(earned), rtol=1e-12)


def test_the_value_gate_and_the_sum():
  _, mask, rng = make(5)
  value = rng.standard_normal(9)
  want = sigmoid(2 * value)[:, None] * mask
  got = shaping.value_gate(value, mask, gate_scale=2.0)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  rewards, signal = rng.standard_normal((2, *mask.shape))
  got = shaping.shaped_rewards(rewards, signal, want, shaping_coef=0.1)
  np.testing.assert_allclose(got, rewards + 0.1 * want * signal, rtol=1e-12)


@pytest.mark.parametrize('level', [1e4, -1e4])
def test_wild_log_probabilities_are_finite(level):
  teacher, mask, rng = make(7)
  teacher = level * teacher.astype(np.float32)
  earned, groups = rng.standard_normal(9).astype(np.float32), np.zeros(9, int)
  value = shaping.teacher_value(teacher, mask, earned, groups, temperature=1.0)
  results = [value, shaping.value_gate(1e4 * value, mask, gate_scale=2.0)]
  results.append(shaping.teacher_rewards(teacher, mask))
  for result in results:
    assert np.isfinite(result).all() and result.dtype == np.float32


def test_equal_log_probabilities_and_single_tokens_pay_nothing():
  mask = np.array([[1, 1, 1], [0, 1, 0]], bool)
  np.testing.assert_array_equal(shaping.teacher_rewards(np.full((2, 3), -1.5), mask), 0)
  one = np.array([[0, 1, 0], [0, 0, 0]], bool)
  got = shaping.teacher_rewards(np.array([[1.0, -2.0, 3.0]] * 2), one)
  np.testing.assert_array_equal(got, 0)
