import pytest
from scipy import stats

from sdar_jax import statistics


@pytest.mark.parametrize('n', [1, 2, 7, 140, 500, 10_000])
def test_wilson_interval_equals_scipy(n):
  for successes in {0, 1, n // 3, n // 2, n - 1, n}:
    test = stats.binomtest(successes, n)
    expected = test.proportion_ci(confidence_level=0.95, method='wilson')
    low, high = statistics.wilson_interval(successes, n)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_interval_published_values():
  # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
  for successes, n, low, high in (
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ):
    got = statistics.wilson_interval(successes, n)
    assert got == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_at_the_ends_is_exact():
  assert statistics.wilson_interval(0, 13)[0] == 0.0
  assert statistics.wilson_interval(13, 13)[1] == 1.0
  assert statistics.wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize('successes, n', [(-1, 3), (4, 3), (1, 0)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
  with pytest.raises(ValueError, match=f'successes={successes}'):
    statistics.wilson_interval(successes, n)
