"""One layer of a decoder; `decoder` stacks them. Attention, cache, MLP.

Keys are kept as [B, K, H, S] and values as [B, K, S, H]: the scores and the mix of a
decode step are then plain batched matrix products, without a transpose of the cache.
The modules are Flax linen; their `config` is a `parameters.ModelConfig`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sdar_jax.models import attention_blocks, attention_kernels, rope, sharding

BACK_ENDS = ('auto', 'dense', 'chunked', 'cudnn', 'splash')
# 'auto' is 'dense' up to so many keys. The small models have fewer, and [512, 512]
# scores are the largest that blocks would keep, too.
DENSE_KEYS = 512
INIT_STDDEV = 0.02  # Qwen's and Llama's initializer_range.


def frequencies(width: int, theta: float) -> jax.Array:
  """Computes rotary angles per position, [H/2] f32, radians."""
  half = width // 2
  return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotate(
  x: jax.Array,
  positions: jax.Array,
  theta: float,
  scaling: rope.Scaling | None = None,
) -> jax.Array:
  """Applies rotary positions in the half-split layout, in float32.

  out[:H/2] = x1 cos(a) - x2 sin(a);  out[H/2:] = x2 cos(a) + x1 sin(a);
  a[i] = position * theta^(-2i/H), that frequency scaled as `rope.scale` says

  Args:
    x: [B, T, heads, H] queries or keys.
    positions: [B, T] i32, token positions.
    theta: base of the frequencies.
    scaling: of the frequencies; None is none.

  Returns:
    [B, T, heads, H] in the dtype of `x`.

  Source: Su et al. 2021, arXiv:2104.09864, in the layout of Hugging Face's weights.
  """
  angles = positions[:, :, None, None].astype(jnp.float32)
  angles = angles * rope.scale(frequencies(x.shape[-1], theta), scaling)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attend(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  query_positions: jax.Array,
  key_positions: jax.Array,
  back_end: str = 'dense',
) -> jax.Array:
  """Causal grouped-query attention; the softmax is in float32.

  out[b,t,n] = sum_s softmax_s(query . keys / sqrt(H) where key position <= query
  position)[s] values[s], head n reading key head n // (N / K)

  Args:
    query: [B, T, N, H].
    keys: [B, K, H, S].
    values: [B, K, S, H].
    query_positions: [B, T] i32.
    key_positions: [B, S] i32 ([1, S] broadcasts).
    back_end: one of BACK_ENDS. Where it comes to be 'cudnn' or 'splash', both
      positions must be 0 .. T - 1 in every row.

  Returns:
    [B, T, N, H] in the dtype of `query`.
  """
  shape = query.shape[1], values.shape[2], query.shape[-1]
  chosen = choose(back_end, *shape, query.dtype)
  if chosen == 'cudnn':
    return attention_kernels.cudnn(query, keys, values)
  if chosen == 'splash':
    return attention_kernels.splash(query, keys, values)
  form = attention_blocks.attend if chosen == 'chunked' else dense
  return form(query, keys, values, query_positions, key_positions)


def choose(back_end: str, queries: int, keys: int, width: int, dtype: Any) -> str:
  """Chooses how a call attends.

  Args:
    back_end: one of BACK_ENDS. A kernel attends whole rows; where queries are not
      keys, as in a decode step, the choice is that of 'auto'.
    queries: T.
    keys: S.
    width: of a head.
    dtype: of the queries.

  Returns:
    'dense', 'chunked', 'cudnn' or 'splash'.
  """
  whole = queries == keys
  if back_end in ('dense', 'chunked') or (back_end != 'auto' and whole):
    return back_end
  # XLA for GPU copies a block before it multiplies it: three times the traffic of a
  # decode step's, which nothing but traffic decides. Elsewhere it does not.
  copied = queries == 1 and attention_kernels.platform() == 'gpu'
  if keys <= DENSE_KEYS or copied:
    return 'dense'
  return (whole and attention_kernels.fitting(width, dtype)) or 'chunked'


def dense(query, keys, values, query_positions, key_positions):
  """Forms all scores at once: the oracle. Arguments as `attend`."""
  batch, length, heads, width = query.shape
  kv_heads, span = values.shape[1:3]
  # Group and query axes are merged: the two products are then plain batched matrix
  # products, on CPU about twice as fast in decoding as with both axes kept apart.
  query = (query * width**-0.5).reshape(batch, length, kv_heads, -1, width)
  query = query.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)
  scores = jnp.einsum(
    'bkqh,bkhs->bkqs', query, keys, preferred_element_type=jnp.float32
  )
  scores = scores.reshape(batch, kv_heads, -1, length, span)
  visible = key_positions[:, None, :] <= query_positions[:, :, None]
  # A finite floor: a row that sees no key must not turn into NaN.
  scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  weights = weights.reshape(batch, kv_heads, -1, span)
  mixed = jnp.einsum('bkqs,bksh->bkqh', weights, values)
  mixed = mixed.reshape(batch, kv_heads, -1, length, width).transpose(0, 3, 1, 2, 4)
  return mixed.reshape(batch, length, heads, width)


def write(layer_cache, keys, values, positions, rows=None):
  """Stores new keys and values in one layer's cache.

  Args:
    layer_cache: keys [C, K, H, S] and values [C, K, S, H].
    keys: [B, T, K, H].
    values: [B, T, K, H].
    positions: [B, T] i32, indices along S; those outside [0, S) are dropped.
    rows: as in `decoder.forward`.

  Returns:
    The updated pair.
  """
  if rows is not None:
    split = (_split(array, rows) for array in (*layer_cache, keys, values, positions))
    *pair, keys, values, positions = split
    out = jax.vmap(_write)(pair, keys, values, positions, rows)
    return tuple(array.reshape(-1, *array.shape[2:]) for array in out)
  return _write(layer_cache, keys, values, positions, jnp.arange(positions.shape[0]))


def read(layer_cache, rows=None):
  """Takes the keys and values of a batch's rows; arguments as `write`."""
  if rows is None:
    return layer_cache
  take = jax.vmap(lambda array, row: array.at[row].get(mode='promise_in_bounds'))
  taken = (take(_split(array, rows), rows) for array in layer_cache)
  return tuple(array.reshape(-1, *array.shape[2:]) for array in taken)


def _split(array, rows):
  return array.reshape(rows.shape[0], -1, *array.shape[1:])


def _write(layer_cache, keys, values, positions, rows):
  drop = dict(mode='drop', wrap_negative_indices=False)
  cached_keys, cached_values = layer_cache
  at = rows[:, None]
  return (
    cached_keys.at[at, :, :, positions].set(keys.astype(cached_keys.dtype), **drop),
    cached_values.at[at, :, positions].set(values.astype(cached_values.dtype), **drop),
  )


def _initializer(init, *axes):
  return nn.with_logical_partitioning(init, axes)


def norm(config, dtype, axis, name=None):
  """Makes an RMS norm whose scale has one logical axis."""
  scale_init = _initializer(nn.initializers.ones, axis)
  return nn.RMSNorm(config.rms_norm_eps, dtype, scale_init=scale_init, name=name)


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
  """Multiplies silu(gate) by up.

  XLA for CPU takes 1.5 times as long for the gradient that JAX derives.
  """
  return nn.silu(gate) * up


def _gated_forward(gate, up):
  return gated(gate, up), (gate, up)


def _gated_backward(saved, gradient):
  gate, up = saved
  share = nn.sigmoid(gate)
  silu = gate * share
  return gradient * up * (share + silu * (1 - share)), gradient * silu


gated.defvjp(_gated_forward, _gated_backward)


class Attention(nn.Module):
  """Projections, rotary positions, cache and attention of one layer."""

  config: Any
  dtype: Any

  @nn.compact
  def __call__(self, x, positions, layer_cache, rows=None):
    """Maps [B, T, D] to [B, T, D] and the layer's new cache."""
    config = self.config
    query = self._heads('query', 'heads', config.num_heads, x)
    keys = self._heads('key', 'kv_heads', config.num_kv_heads, x)
    values = self._heads('value', 'kv_heads', config.num_kv_heads, x)
    if config.family == 'qwen3':
      query = norm(config, self.dtype, 'norm', 'query_norm')(query)
      keys = norm(config, self.dtype, 'norm', 'key_norm')(keys)
    query = rotate(query, positions, config.rope_theta, config.rope_scaling)
    keys = rotate(keys, positions, config.rope_theta, config.rope_scaling)
    if layer_cache is None:
      keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
      key_positions = positions
    else:
      layer_cache = write(layer_cache, keys, values, positions, rows)
      key_positions = jnp.arange(layer_cache[0].shape[-1])[None]
      keys, values = (array.astype(self.dtype) for array in read(layer_cache, rows))
    mixed = attend(query, keys, values, positions, key_positions, config.attention)
    out = nn.DenseGeneral(
      config.hidden_size,
      axis=(-2, -1),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_initializer(
        nn.initializers.normal(INIT_STDDEV), 'heads', 'head_dim', 'embed'
      ),
      name='out',
    )
    return out(mixed.reshape(-1, *mixed.shape[2:])).reshape(x.shape), layer_cache

  def _heads(self, name, axis, count, x):
    project = nn.DenseGeneral(
      (count, self.config.head_dim),
      use_bias=self.config.family == 'qwen2',
      dtype=self.dtype,
      kernel_init=_initializer(
        nn.initializers.normal(INIT_STDDEV), 'embed', axis, 'head_dim'
      ),
      bias_init=_initializer(nn.initializers.zeros, axis, 'head_dim'),
      name=name,
    )
    # Flat, as in `Mlp`: a weight's gradient then contracts over one axis.
    heads = project(x.reshape(-1, x.shape[-1]))
    return heads.reshape(*x.shape[:-1], count, self.config.head_dim)


class Mlp(nn.Module):
  """down(silu(gate(x)) * up(x))."""

  config: Any
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """Maps [B, T, D] to [B, T, D]."""
    hidden, shape = self.config.intermediate_size, x.shape
    # Weight gradients contract over one axis: on CPU 1.5 times as fast as over two.
    x = x.reshape(-1, shape[-1])
    gate = self._dense('gate', hidden, ('embed', 'mlp'))(x)
    up = self._dense('up', hidden, ('embed', 'mlp'))(x)
    down = self._dense('down', self.config.hidden_size, ('mlp', 'embed'))
    return down(gated(gate, up)).reshape(shape)

  def _dense(self, name, features, axes):
    init = _initializer(nn.initializers.normal(INIT_STDDEV), *axes)
    return nn.Dense(features, False, self.dtype, kernel_init=init, name=name)


class Layer(nn.Module):
  """Attention and MLP, each after a norm, on the residual stream."""

  config: Any
  dtype: Any

  @nn.compact
  def __call__(self, x, positions, layer_cache, rows=None):
    """Maps [B, T, D] to [B, T, D] and the layer's new cache."""
    config, dtype = self.config, self.dtype
    normed = norm(config, dtype, 'norm', 'attention_norm')(x)
    mixed, layer_cache = Attention(config, dtype, name='attention')(
      normed, positions, layer_cache, rows
    )
    x = x + mixed
    normed = norm(config, dtype, 'norm', 'mlp_norm')(x)
    x = x + Mlp(config, dtype, name='mlp')(normed)
    return sharding.constrain(x, ('batch', None, None)), layer_cache
