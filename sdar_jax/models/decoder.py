"""Qwen2, Qwen2.5, Qwen3 and Llama decoders behind one pure `forward`.

The modules of `attention` are Flax linen; nobody else needs to know. `parameters` says
what weights there are.

Training and prefill scan over the stacked layers (compile time does not grow with
depth). A decode loop calls `unstack` once outside the loop: the layers are then
unrolled and every layer's cache array is updated in place.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from sdar_jax.models import attention, sharding
from sdar_jax.models import lora as lora_lib
from sdar_jax.models.parameters import ModelConfig, Params

# So few layers are unrolled: on CPU, XLA runs what is inside a loop on one core.
UNROLLED_LAYERS = 4
# What the backward pass keeps of a layer instead of recomputing it.
REMATS = {
  'none': jax.checkpoint_policies.everything_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
  """Keys and values of past tokens; index S is the position.

  Per layer, keys [B, K, H, S] and values [B, K, S, H] (see attention.py for why). One
  array per layer lets a decode loop update each in place.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


def init_cache(config: ModelConfig, batch: int, length: int, dtype: Any) -> Cache:
  """An empty cache for `batch` rows and positions 0 .. `length` - 1.

  Args:
    config: the model.
    batch: rows.
    length: positions, S.
    dtype: dtype of the stored keys and values.

  Returns:
    Zeros; a position is never read before it is written.
  """
  heads, width = config.num_kv_heads, config.head_dim
  keys = [
    jnp.zeros((batch, heads, width, length), dtype) for _ in range(config.num_layers)
  ]
  values = [
    jnp.zeros((batch, heads, length, width), dtype) for _ in range(config.num_layers)
  ]
  return Cache(tuple(keys), tuple(values))


def compute_params(params: Params, dtype: Any) -> Params:
  """Casts what a forward pass casts, to the same results.

  Norm scales stay as they are: their products are computed in float32.
  """

  def cast(path: Any, leaf: jax.Array) -> jax.Array:
    return jnp.copy(leaf) if path[-1].key == 'scale' else leaf.astype(dtype, copy=True)

  return jax.tree_util.tree_map_with_path(cast, params)


def unstack(params: Params) -> Params:
  """Splits stacked layers into a tuple of trees, for decoding.

  Call it once outside the decode loop, so that the slices are not taken per token.
  """
  stacked = params['layers']
  count = jax.tree.leaves(stacked)[0].shape[0]
  layers = tuple(
    jax.tree.map(lambda leaf, index=i: leaf[index], stacked) for i in range(count)
  )
  return {**params, 'layers': layers}


def _scan_layers(layer, params, x, positions, cache, remat):
  """Scans the stacked layers; unrolls a few that are stored."""
  few = jax.tree.leaves(params)[0].shape[0] <= UNROLLED_LAYERS
  scan = functools.partial(jax.lax.scan, unroll=few and remat == 'none')

  def body(x, layer_inputs):
    layer_params, layer_cache = layer_inputs
    return layer.apply(
      {'params': lora_lib.merge(layer_params)}, x, positions, layer_cache
    )

  if remat != 'none':
    body = jax.checkpoint(body, prevent_cse=False, policy=REMATS[remat])
  if cache is None:
    return scan(body, x, (params, None))[0], None
  stacked = (jnp.stack(cache.keys), jnp.stack(cache.values))
  x, (keys, values) = scan(body, x, (params, stacked))
  return x, Cache(tuple(keys), tuple(values))


def _unroll_layers(layer, params, x, positions, cache, rows):
  """Runs a tuple of layers one after another; no layer's cache is copied."""
  keys, values = [], []
  for index, layer_params in enumerate(params):
    layer_cache = None if cache is None else (cache.keys[index], cache.values[index])
    variables = {'params': lora_lib.merge(layer_params)}
    x, layer_cache = layer.apply(variables, x, positions, layer_cache, rows)
    if cache is not None:
      keys.append(layer_cache[0])
      values.append(layer_cache[1])
  return x, None if cache is None else Cache(tuple(keys), tuple(values))


def forward(
  config: ModelConfig,
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  *,
  cache: Cache | None = None,
  rows: jax.Array | None = None,
  dtype: Any = jnp.float32,
  remat: str = 'none',
) -> tuple[jax.Array, Cache | None]:
  """Final hidden states of a batch of right-padded rows.

  A token sees the tokens whose position is at most its own: of its row, or, with a
  cache, of what the cache holds after this call's keys and values are written at
  `positions` (positions outside the cache are dropped).

  Args:
    config: the model; static under jit.
    params: stacked (layers are scanned), or from `unstack` (unrolled; for decoding).
    tokens: [B, T] i32.
    positions: [B, T] i32, rising along the row; 0 .. T - 1 where `config.attention`
      comes to a kernel, that is, without a cache or with one of T positions.
    cache: keys and values of earlier tokens, or None.
    rows: [W, B / W] i32, the row of the cache that each row of the batch is a piece
      of; several may be of one and see each other. Batch and cache are both cut in W
      equal parts, and rows are counted inside their part, so that none leaves its
      device. None: every row its own. Unstacked layers only.
    dtype: compute dtype; softmax and norm statistics are float32 in any case.
    remat: of `REMATS`: whether the backward pass recomputes each layer, or all of it
      but the products with weights, instead of storing it (stacked layers only).

  Returns:
    Hidden states [B, T, D] in `dtype`, after the final norm, and the new cache, or
    None where none was given.
  """
  chex.assert_rank(tokens, 2)
  chex.assert_equal_shape([tokens, positions])
  x = params['embed']['embedding'][tokens].astype(dtype)
  x = sharding.constrain(x, ('batch', None, None))
  layer = attention.Layer(config, dtype)
  weights = params['layers']
  if isinstance(weights, tuple):
    x, cache = _unroll_layers(layer, weights, x, positions, cache, rows)
  else:
    chex.assert_equal(rows is None, True)
    x, cache = _scan_layers(layer, weights, x, positions, cache, remat)
  norm = attention.norm(config, dtype, 'norm')
  return norm.apply({'params': params['final_norm']}, x), cache


def output_head(config: ModelConfig, params: Params) -> jax.Array:
  """Finds the output head, [V, D], whole over D on every device."""
  head = params['embed' if config.tie_word_embeddings else 'lm_head']['embedding']
  return sharding.constrain(head, ('vocab', None))


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
  """Scores of every vocabulary id, accumulated and returned in float32.

  Args:
    config: the model.
    params: nested dict, stacked or not.
    hidden: [..., D] from `forward`.

  Returns:
    [..., V] f32.
  """
  return project(output_head(config, params), hidden)


def project(head: jax.Array, hidden: jax.Array) -> jax.Array:
  """Scores vocabulary ids: [..., D] by the head [V, D] to [..., V] f32."""
  return jnp.einsum(
    '...d,vd->...v',
    hidden,
    head.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
