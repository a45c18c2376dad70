import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.losses import masked

LENGTH = 12
WILD = [np.nan, np.inf, -np.inf, 1e38]


def loop_aggregate(values, mask, aggregation):
  rows = [[v for v, m in zip(*row) if m] for row in zip(values, mask)]
  rows = [row for row in rows if row]
  if aggregation == 'token-mean':
    return sum(map(sum, rows)) / sum(map(len, rows))
  if aggregation == 'seq-mean-token-sum':
    return sum(map(sum, rows)) / len(rows)
  if aggregation == 'seq-mean-token-mean':
    return sum(sum(row) / len(row) for row in rows) / len(rows)
  return sum(map(sum, rows)) / LENGTH


@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
@pytest.mark.parametrize('jit', [False, True], ids=['eager', 'jit'])
def test_aggregate_equals_a_loop(aggregation, jit):
  for seed in range(3):
    batch = make_batch(seed, padding_rows=2)
    values, mask = batch['logprobs'], batch['response_mask']
    normaliser = masked.normaliser_of(mask, aggregation, length=LENGTH)

    def function(values, mask, normaliser):
      return masked.aggregate(values, mask, normaliser, aggregation)

    got = (jax.jit(function) if jit else function)(values, mask, normaliser)
    want = loop_aggregate(values.tolist(), mask.tolist(), aggregation)
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_normalisers_count_tokens_rows_or_the_given_length():
  mask = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
  wants = dict(zip(masked.AGGREGATIONS, (3, 2, 2, LENGTH)))
  for aggregation, want in wants.items():
    for array in (mask, jnp.asarray(mask)):
      assert masked.normaliser_of(array, aggregation, length=LENGTH) == want
      got = masked.normaliser_of(array[2:], aggregation, length=LENGTH)
      assert got == (LENGTH if aggregation == masked.AGGREGATIONS[3] else 1)


@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
def test_microbatches_add_up_to_the_minibatch(aggregation):
  batch = make_batch(1, rows=9)
  values, mask = batch['logprobs'], batch['response_mask']
  normaliser = masked.normaliser_of(mask, aggregation, length=LENGTH)
  function = jax.value_and_grad(masked.aggregate)
  whole, whole_grad = function(values, mask, normaliser, aggregation)
  for cuts in ([3, 6], [7]):
    parts = [
      function(v, m, normaliser, aggregation)
      for v, m in zip(np.split(values, cuts), np.split(mask, cuts))
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole, rtol=1e-6)
    grads = np.concatenate([part[1] for part in parts])
    np.testing.assert_array_equal(grads, whole_grad)


@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
@pytest.mark.parametrize('wild', WILD)
def test_all_masked_is_exactly_zero(aggregation, wild):
  mask = np.zeros((2, 3), bool)
  normaliser = masked.normaliser_of(mask, aggregation, length=LENGTH)

  def scalar(values):
    (values,) = masked.fill(mask, values)
    return masked.aggregate(jnp.exp(values), mask, normaliser, aggregation)

  value, grad = jax.value_and_grad(scalar)(jnp.full((2, 3), wild))
  assert value == 0
  np.testing.assert_array_equal(grad, 0)


@settings(max_examples=30, deadline=None)
@given(
  values=st.lists(st.sampled_from([*WILD, 0.0, 3.0]), min_size=12, max_size=12),
  bits=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_masked_values_never_reach_a_gradient(values, bits):
  values = np.array(values, np.float32).reshape(3, 4)
  mask = np.array(bits).reshape(3, 4) & (values < 5)

  def scalar(values):
    (values,) = masked.fill(mask, values)
    return masked.aggregate(jnp.exp(values), mask, 7, 'token-mean')

  value, grad = jax.value_and_grad(scalar)(values)
  finite = np.where(mask, values, 0.0).astype(np.float64)
  np.testing.assert_allclose(value, np.sum(np.exp(finite) * mask) / 7, rtol=1e-5)
  np.testing.assert_allclose(grad, np.exp(finite) * mask / 7, rtol=1e-5)


def test_metrics_are_token_means_that_add_up():
  batch = make_batch(2, rows=6)
  values, mask = batch['logprobs'], batch['response_mask']

  def metrics(rows):
    totals = {
      'value': masked.total(values[rows], mask[rows]),
      'share': masked.total(values[rows] > -0.5, mask[rows]),
    }
    return jax.tree.map(np.asarray, totals)

  parts = jax.tree.map(np.add, metrics(slice(0, 1)), metrics(slice(1, 6)))
  got = {name: np.divide(*pair) for name, pair in parts.items()}
  np.testing.assert_allclose(got['value'], values[mask].mean(), rtol=1e-6)
  np.testing.assert_allclose(got['share'], (values[mask] > -0.5).mean(), rtol=1e-6)
  assert masked.total(values, np.zeros_like(mask)) == (0, 0)


def test_wrong_settings_are_named():
  mask = np.ones((1, 1), bool)
  with pytest.raises(ValueError, match="aggregation='mean'"):
    masked.aggregate(np.ones((1, 1)), mask, 1, 'mean')
  with pytest.raises(ValueError, match='length=None'):
    masked.normaliser_of(mask, 'seq-mean-token-sum-norm')
  with pytest.raises(AssertionError):  # A float mask is a mistake, not a weight.
    masked.aggregate(np.ones((1, 1)), np.ones((1, 1)), 1, 'token-mean')
