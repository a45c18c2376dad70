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

from sdar_jax.methods.hyperparameters import KEYS

Array = jax.Array | np.ndarray
# name -> (sum, count); both add up over microbatches, minibatches and devices.
Metrics = dict[str, tuple[jax.Array, jax.Array]]

AGGREGATIONS = KEYS['aggregation'].allowed


def check_aggregation(aggregation: str) -> None:
  """Raises ValueError unless `aggregation` is one of `AGGREGATIONS`."""
  if aggregation not in AGGREGATIONS:
    raise ValueError(f'aggregation={aggregation!r}: expected one of {AGGREGATIONS}')


def fill(mask: Array, *arrays: Array) -> tuple[jax.Array, ...]:
  """Puts 0 where `mask` is False; no gradient reaches a masked entry.

  Args:
    mask: [B, T] bool.
    *arrays: [B, T] float each; masked entries may be infinite or NaN.
  """
  chex.assert_type(mask, bool)
  chex.assert_equal_shape([mask, *arrays])
  return tuple(jnp.where(mask, array, jnp.zeros_like(array)) for array in arrays)


def normaliser_of(
  mask: Array, aggregation: str, *, length: int | None = None
) -> Array | int:
  """Counts the divisor of `aggregate` on the whole minibatch.

    N = max(1, tokens)             in token-mean
    N = max(1, rows with a token)  in seq-mean-token-sum and seq-mean-token-mean
    N = L                          in seq-mean-token-sum-norm

  Args:
    mask: [B, T] bool, the whole minibatch's response mask, NumPy or JAX. Padding
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
  if aggregation == 'token-mean':
    return mask.sum().clip(1)
  if aggregation == 'seq-mean-token-sum-norm':
    if length is None or length < 1:
      raise ValueError(
        f'length={length}: aggregation={aggregation!r} needs a positive length'
      )
    return length
  return mask.any(axis=1).sum().clip(1)


def aggregate(
  values: Array, mask: Array, normaliser: Array | int, aggregation: str
) -> jax.Array:
  """Sums values per token to one scalar.

    1/N · Σ_b w_b Σ_t m_bt v_bt,  w_b = 1 / max(1, Σ_t m_bt) in seq-mean-token-mean,
    else 1

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
  """Sums and counts unmasked tokens, without gradient.

  Args:
    values: [B, T] float or bool.
    mask: [B, T] bool.
  """
  values = jax.lax.stop_gradient(jnp.asarray(values))
  if values.dtype == bool:
    values = values.astype(float)
  (values,) = fill(mask, values)
  return jnp.sum(values), jnp.sum(mask).astype(values.dtype)
