"""Qwen2, Qwen2.5, Qwen3 and Llama decoders behind one pure `forward`.

The modules of `attention` are Flax linen; nobody else needs to know. Parameters are a
plain nested dict whose layers are stacked on axis 0:

  embed/embedding [V, D]    layers/... [L, ...]    final_norm/scale [D]
  lm_head/embedding [V, D] (absent when the embeddings are tied)

Training and prefill scan over the stacked layers (compile time does not grow with
depth). A decode loop calls `unstack` once outside the loop: the layers are then
unrolled and every layer's cache array is updated in place.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from sdar_jax.models import attention, rope, sharding
from sdar_jax.models import lora as lora_lib

FAMILIES = ('qwen2', 'qwen3', 'llama')
# So few layers are unrolled: on CPU, XLA runs what is inside a loop on one core.
UNROLLED_LAYERS = 4
# What the backward pass keeps of a layer instead of recomputing it.
REMATS = {
  'none': jax.checkpoint_policies.everything_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """Shape and logical axes (see sharding.ShardingRules) of one parameter."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Hyperparameters of one decoder; hashable, static under jit.

  Attributes:
    family: 'qwen2' (biases on query, key and value; also Qwen2.5), 'qwen3' (no
      biases, RMS norm of every query and key head) or 'llama' (neither).
    vocab_size: rows of the embedding, padding rows included.
    hidden_size: width of the residual stream, D.
    intermediate_size: hidden units of the MLP.
    num_layers: decoder layers, L.
    num_heads: query heads, N.
    num_kv_heads: key and value heads, K; divides N.
    head_dim: width of one head, H; even. N * H need not be D.
    rope_theta: base of the rotary frequencies.
    rms_norm_eps: added to the mean square in every norm.
    tie_word_embeddings: the output head is the input embedding.
    attention: one of attention.BACK_ENDS; see `attention.choose`.
    rope_scaling: of the rotary frequencies; None is none.
    lora: what trains beside the frozen model, or None where all of it trains.
  """

  family: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float
  rms_norm_eps: float
  tie_word_embeddings: bool
  attention: str = 'auto'
  rope_scaling: rope.Scaling | None = None
  lora: lora_lib.Lora | None = None

  def __post_init__(self):
    if self.family not in FAMILIES:
      raise ValueError(f'family {self.family!r}: must be one of {FAMILIES}')
    if self.attention not in attention.BACK_ENDS:
      raise ValueError(
        f'attention {self.attention!r}: must be one of {attention.BACK_ENDS}'
      )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f'{field.name} {value}: must be at least 1')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads {self.num_heads}: must divide by num_kv_heads {self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim {self.head_dim}: must be even for rotary positions')

  @property
  def architecture(self) -> dict[str, Any]:
    """What a model's files decide, not how it is run; without None."""
    fields = dataclasses.asdict(self)
    return {
      name: value
      for name, value in fields.items()
      if name not in ('attention', 'lora') and value is not None
    }

  def param_specs(self) -> dict[str, Any]:
    """A tree like `init_params` with a ParamSpec for every leaf."""
    vocab = (self.vocab_size, self.hidden_size)
    embedding = {'embedding': ParamSpec(vocab, ('vocab', 'embed'))}
    specs = {
      'embed': embedding,
      'layers': jax.tree.map(lambda spec: spec, _layer_specs(self)),
      'final_norm': {'scale': ParamSpec((self.hidden_size,), ('norm',))},
    }
    if not self.tie_word_embeddings:
      specs['lm_head'] = embedding
    return specs

  def policy_specs(self) -> dict[str, Any]:
    """A tree of ParamSpec of what a forward pass reads."""
    specs = self.param_specs()
    return lora_lib.join(specs, self.adapter_specs()) if self.lora else specs

  def adapter_specs(self) -> dict[str, Any]:
    """A tree of ParamSpec of the adapters; empty without."""
    return lora_lib.adapter_specs(self.param_specs(), self.lora) if self.lora else {}


class Cache(NamedTuple):
  """Keys and values of past tokens; index S is the position.

  Per layer, keys [B, K, H, S] and values [B, K, S, H] (see attention.py for why). One
  array per layer lets a decode loop update each in place.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


def _init_layer(config: ModelConfig, key: jax.Array) -> Any:
  x = jnp.zeros((1, 1, config.hidden_size))
  positions = jnp.zeros((1, 1), jnp.int32)
  # No parameter depends on the back end, and not every one takes float32.
  config = dataclasses.replace(config, attention='dense')
  return attention.Layer(config, jnp.float32).init(key, x, positions, None)['params']


@functools.lru_cache
def _layer_specs(config: ModelConfig) -> dict[str, Any]:
  """Collects the specs of the stacked layers by module names."""
  return jax.tree.map(
    lambda box: ParamSpec(
      (config.num_layers, *box.value.shape), ('layers', *box.names)
    ),
    jax.eval_shape(lambda: _init_layer(config, jax.random.key(0))),
    is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
  )


@functools.partial(jax.jit, static_argnums=(0, 2))
def init_params(
  config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32
) -> Params:
  """Initialises parameters: matrices N(0, 0.02^2), norms one.

  Args:
    config: the model.
    key: PRNG key.
    dtype: dtype of every parameter.

  Returns:
    Nested dict; layers stacked on axis 0.
  """
  embed_key, layers_key, head_key = jax.random.split(key, 3)
  shape = (config.vocab_size, config.hidden_size)
  normal = nn.initializers.normal(attention.INIT_STDDEV)
  keys = jax.random.split(layers_key, config.num_layers)
  params = {
    'embed': {'embedding': normal(embed_key, shape)},
    'layers': jax.vmap(lambda k: nn.unbox(_init_layer(config, k)))(keys),
    'final_norm': {'scale': jnp.ones(config.hidden_size)},
  }
  if not config.tie_word_embeddings:
    params['lm_head'] = {'embedding': normal(head_key, shape)}
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


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


def unstacked_specs(specs: dict[str, Any]) -> dict[str, Any]:
  """Gives the specs of what `unstack` makes of parameters with `specs`."""
  layers = specs['layers']
  count = jax.tree.leaves(layers)[0].shape[0]
  one = jax.tree.map(lambda spec: ParamSpec(spec.shape[1:], spec.axes[1:]), layers)
  return {**specs, 'layers': (one,) * count}


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
