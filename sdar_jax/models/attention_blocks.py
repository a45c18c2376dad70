"""Exact attention by blocks: no [T, S] scores, in either direction.

Queries are taken QUERIES and keys KEYS at a time. A running maximum and a running sum
in float32 make one softmax of all blocks of keys; the backward pass computes the
scores again, block by block, from the logarithm of that sum. Blocks of queries alone
would need no running sum, but would still read all of a cache for one query.

Blocks of keys that no query of the block sees are left out at the end, never in the
middle. One that other rows need multiplies by exactly 1 and adds exactly 0, so that a
row's numbers do not depend, to the bit, on the positions of its neighbours.

Source: Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Scores of a block, [QUERIES, KEYS] f32 per row and head, are 0.5 MiB.
QUERIES, KEYS = 256, 512
_FLOOR = float(jnp.finfo(jnp.float32).min)
_NEVER = jnp.iinfo(jnp.int32).min  # The position of a query that sees no key.


def attend(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  query_positions: jax.Array,
  key_positions: jax.Array,
) -> jax.Array:
  """Causal grouped-query attention; see `attention.attend`.

  Args:
    query: [B, T, N, H].
    keys: [B, K, H, S].
    values: [B, K, S, H].
    query_positions: [B, T] i32.
    key_positions: [B, S] i32 ([1, S] broadcasts).

  Returns:
    [B, T, N, H] in the dtype of `query`; 0 where a query sees no key.
  """
  batch, length, heads, width = query.shape
  kv_heads, group = keys.shape[1], heads // keys.shape[1]
  size = min(QUERIES, length)
  count = -(-length // size)
  spare = count * size - length
  query = jnp.pad(query * width**-0.5, ((0, 0), (0, spare), (0, 0), (0, 0)))
  query = query.reshape(batch, count, size, kv_heads, group, width)
  # Group and query axes are merged, as in `attention.dense`.
  query = query.transpose(1, 0, 3, 4, 2, 5)
  query = query.reshape(count, batch, kv_heads, group * size, width)
  positions = jnp.pad(query_positions, ((0, 0), (0, spare)), constant_values=_NEVER)
  positions = positions.reshape(-1, count, size).swapaxes(0, 1)
  mixed = _attend(query, keys, values, positions, key_positions)
  mixed = mixed.reshape(count, batch, kv_heads, group, size, width)
  mixed = mixed.transpose(1, 0, 4, 2, 3, 5)
  return mixed.reshape(batch, count * size, heads, width)[:, :length]


class _Keys(NamedTuple):
  """Keys, values, their positions, and each block's least position."""

  keys: jax.Array
  values: jax.Array
  positions: jax.Array
  least: jax.Array

  @property
  def size(self) -> int:
    return min(KEYS, self.positions.shape[1])

  def start(self, index):
    """Finds a block's first key; the last reaches back to be whole."""
    return jnp.minimum(index * self.size, self.positions.shape[1] - self.size)

  def scores(self, index, query, query_positions):
    """Computes a block's scores and what of them is visible."""
    start, size = self.start(index), self.size
    keys = jax.lax.dynamic_slice_in_dim(self.keys, start, size, 3)
    values = jax.lax.dynamic_slice_in_dim(self.values, start, size, 2)
    positions = jax.lax.dynamic_slice_in_dim(self.positions, start, size, 1)
    visible = positions[:, None] <= query_positions[:, :, None]
    if self.positions.shape[1] % size:
      visible &= start + jnp.arange(size) >= index * size
    scores = _product('bkqh,bkhs->bkqs', query, keys)
    shape = (*scores.shape[:2], -1, *visible.shape[1:])
    visible = jnp.broadcast_to(visible[:, None, None], scores.reshape(shape).shape)
    visible = visible.reshape(scores.shape)
    return keys, values, jnp.where(visible, scores, _FLOOR), visible


def _blocks_of(keys, values, positions):
  size = min(KEYS, positions.shape[1])
  widths = ((0, 0), (0, -positions.shape[1] % size))
  padded = jnp.pad(positions, widths, constant_values=jnp.iinfo(jnp.int32).max)
  least = padded.reshape(positions.shape[0], -1, size).min((0, 2))
  return _Keys(keys, values, positions, least)


def _product(pattern, one, other):
  return jnp.einsum(pattern, one, other, preferred_element_type=jnp.float32)


def _seen(keys, query_positions):
  """Counts blocks of keys up to the last that each block of queries sees."""
  numbers = jnp.arange(1, keys.least.size + 1)
  last = query_positions.max((1, 2))
  return jnp.where(keys.least <= last[:, None], numbers, 0).max(1)


@jax.custom_vjp
def _attend(query, keys, values, query_positions, key_positions):
  return _forward(query, keys, values, query_positions, key_positions)[0]


def _forward(query, keys, values, query_positions, key_positions):
  """Returns the mix of values, and what the backward pass needs."""
  blocks = _blocks_of(keys, values, key_positions)
  inputs = (_seen(blocks, query_positions), query, query_positions)
  if query.shape[0] == 1:  # Not a loop of one: a token of a decode step.
    mixed, log_sum = (part[None] for part in _mix(blocks, *(x[0] for x in inputs)))
  else:
    mixed, log_sum = jax.lax.map(lambda block: _mix(blocks, *block), inputs)
  return mixed, (query, keys, values, query_positions, key_positions, mixed, log_sum)


def _mix(keys, count, query, query_positions):
  """Mixes values for a block of queries; log-sum-exp of its scores."""

  def step(index, carry):
    largest, total, mixed = carry
    _, values, scores, visible = keys.scores(index, query, query_positions)
    larger = jnp.maximum(largest, scores.max(-1))
    # Exactly 1, however exp is computed.
    decay = jnp.where(larger == largest, 1.0, jnp.exp(largest - larger))
    weights = jnp.where(visible, jnp.exp(scores - larger[..., None]), 0.0)
    part = _product('bkqs,bksh->bkqh', weights.astype(values.dtype), values)
    total = decay * total + weights.sum(-1)
    return larger, total, decay[..., None] * mixed + part

  rows = query.shape[:3]
  start = (
    jnp.full(rows, _FLOOR),
    jnp.zeros(rows),
    jnp.zeros(query.shape, jnp.float32),
  )
  largest, total, mixed = jax.lax.fori_loop(0, count, step, start)
  total = jnp.where(total == 0, 1.0, total)
  return (mixed / total[..., None]).astype(query.dtype), largest + jnp.log(total)


def _backward(saved, gradient):
  query, keys, values, query_positions, key_positions, mixed, log_sum = saved
  blocks = _blocks_of(keys, values, key_positions)

  def step(carry, block):
    return _gradients(blocks, carry, *block)

  carry = (jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32))
  inner = (gradient.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1)
  count = _seen(blocks, query_positions)
  inputs = (count, query, query_positions, gradient, inner, log_sum)
  (to_keys, to_values), to_query = jax.lax.scan(step, carry, inputs)
  to_keys, to_values = to_keys.astype(keys.dtype), to_values.astype(values.dtype)
  return to_query, to_keys, to_values, None, None


def _gradients(blocks, carry, count, query, query_positions, gradient, inner, log_sum):
  """Adds one block of queries to the gradients of keys and values."""

  def step(index, carry):
    to_keys, to_values, to_query = carry
    keys, values, scores, visible = blocks.scores(index, query, query_positions)
    weights = jnp.where(visible, jnp.exp(scores - log_sum[..., None]), 0.0)
    to_weights = _product('bkqh,bksh->bkqs', gradient, values)
    to_scores = (weights * (to_weights - inner[..., None])).astype(query.dtype)
    weights = weights.astype(query.dtype)
    at = blocks.start(index)
    part = _product('bkqs,bkqh->bkhs', to_scores, query)
    to_keys = _add(to_keys, part, at, 3)
    part = _product('bkqs,bkqh->bksh', weights, gradient)
    to_values = _add(to_values, part, at, 2)
    to_query += _product('bkqs,bkhs->bkqh', to_scores, keys)
    return to_keys, to_values, to_query

  carry = (*carry, jnp.zeros(query.shape, jnp.float32))
  *carry, to_query = jax.lax.fori_loop(0, count, step, carry)
  return tuple(carry), to_query.astype(query.dtype)


def _add(total, part, start, axis):
  """Adds `part` in place to the block of `total` that begins at `start`."""
  old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
  return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, axis)


_attend.defvjp(_forward, _backward)
