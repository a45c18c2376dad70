"""Masked sums: aggregation over tokens, and metrics that add up exactly.

Two rules. A masked value is replaced on the *input* side, before any `exp`, because
a mask that is multiplied afterwards turns an infinite padding value into NaN
gradients. And a mean is a sum divided by an explicit normaliser that was counted on
the whole minibatch, so that summing over microbatches or devices gives the
minibatch's result.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
# name -> (sum, count); both add up over microbatches, minibatches and devices.
Metrics = dict[str, tuple[jax.Array, jax.Array]]

AGGREGATIONS = (
  'token-mean',
  'seq-mean-token-sum',
  'seq-mean-token-mean',
  'seq-mean-token-sum-norm',
)


def namespace(*arrays):
  """`jax.numpy` if any argument is a JAX array (or a tracer), else `numpy`."""
  return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def check_aggregation(aggregation: str) -> None:
  """Raises ValueError unless `aggregation` is one of `AGGREGATIONS`."""
  if aggregation not in AGGREGATIONS:
    raise ValueError(f'aggregation={aggregation!r}: expected one of {AGGREGATIONS}')


def fill(mask: Array, *arrays: Array) -> tuple[jax.Array, ...]:
  """Each array with 0 where `mask` is False.

  Args:
    mask: [B, T] bool.
    *arrays: [B, T] float each; masked entries may be infinite or NaN.

  Returns:
    As many [B, T] arrays. No gradient reaches a masked entry.
  """
  chex.assert_type(mask, bool)
  chex.assert_equal_shape([mask, *arrays])
  return tuple(jnp.where(mask, array, jnp.zeros_like(array)) for array in arrays)


def normaliser_of(
  mask: Array, aggregation: str, *, length: int | None = None
) -> Array | int:
  r"""What `aggregate` divides by, counted on the whole minibatch.

  \[ N = \max(1, \sum_{b,t} m_{bt}) \text{ (token-mean)}, \quad
     \max(1, \#\{b : \sum_t m_{bt} > 0\}) \text{ (seq-mean-*)}, \quad
     L \text{ (seq-mean-token-sum-norm)} \]

  Args:
    mask: [B, T] bool, the whole minibatch's response mask; numpy or JAX. Padding
      rows are all False and count nowhere.
    aggregation: one of `AGGREGATIONS`.
    length: L in tokens, the padded length of a response; only
      'seq-mean-token-sum-norm' reads it.

  Returns:
    A scalar integer, at least 1, in tokens, rows or tokens respectively.

  Raises:
    ValueError: unknown `aggregation`, or no positive `length` where it is needed.

  Source: verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23 divides by the
    microbatch's own counts; counting the minibatch is our correction.
  """
  check_aggregation(aggregation)
  chex.assert_rank(mask, 2)
  chex.assert_type(mask, bool)
  xp = namespace(mask)
  if aggregation == 'token-mean':
    return xp.maximum(xp.sum(mask), 1)
  if aggregation == 'seq-mean-token-sum-norm':
    if length is None or length < 1:
      raise ValueError(
        f'length={length}: aggregation={aggregation!r} needs a positive length'
      )
    return length
  return xp.maximum(xp.sum(xp.any(mask, axis=1)), 1)


def aggregate(
  values: Array, mask: Array, normaliser: Array | int, aggregation: str
) -> jax.Array:
  r"""One scalar from per-token values.

  \[ \frac1N \sum_b w_b \sum_t m_{bt} v_{bt}, \qquad
     w_b = 1/\max(1, \sum_t m_{bt}) \text{ for seq-mean-token-mean, else } 1 \]

  With the same N (see `normaliser_of`) the results of microbatches add up to the
  minibatch's. A batch without any unmasked token gives exactly 0 and gradient 0.

  Args:
    values: [B, T] float, any unit.
    mask: [B, T] bool.
    normaliser: N, scalar > 0, counted on the whole minibatch.
    aggregation: one of `AGGREGATIONS`.

  Returns:
    Scalar in the unit of `values`.

  Raises:
    ValueError: unknown `aggregation`.

  Source: verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23, with N explicit.
  """
  check_aggregation(aggregation)
  chex.assert_rank(values, 2)
  (values,) = fill(mask, values)
  if aggregation == 'seq-mean-token-mean':
    counts = jnp.maximum(jnp.sum(mask, axis=1), 1)
    return jnp.sum(jnp.sum(values, axis=1) / counts) / normaliser
  return jnp.sum(values) / normaliser


def total(values: Array, mask: Array) -> tuple[jax.Array, jax.Array]:
  """The metric (sum over unmasked tokens, number of unmasked tokens).

  Args:
    values: [B, T] float or bool.
    mask: [B, T] bool.

  Returns:
    Two scalars, without gradient.
  """
  values = jax.lax.stop_gradient(jnp.asarray(values))
  if values.dtype == bool:
    values = values.astype(float)
  (values,) = fill(mask, values)
  return jnp.sum(values), jnp.sum(mask).astype(values.dtype)


def add_metrics(left: Metrics, right: Metrics) -> Metrics:
  """Metrics of two disjoint batches together."""
  return jax.tree.map(lambda a, b: a + b, left, right)


def finish_metrics(metrics: Metrics) -> dict[str, Array]:
  """Means sum/count; exactly 0 where the count is 0. Histograms become shares."""
  return {
    name: value / namespace(count).maximum(count, 1)
    for name, (value, count) in metrics.items()
  }
