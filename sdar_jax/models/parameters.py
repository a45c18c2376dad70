"""A decoder's sizes, and the shapes and first values of its parameters.

Parameters are a plain nested dict whose layers are stacked on axis 0:

  embed/embedding [V, D]    layers/... [L, ...]    final_norm/scale [D]
  lm_head/embedding [V, D] (absent when the embeddings are tied)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sdar_jax.models import attention, rope
from sdar_jax.models import lora as lora_lib

FAMILIES = ('qwen2', 'qwen3', 'llama')

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


def unstacked_specs(specs: dict[str, Any]) -> dict[str, Any]:
  """Gives specs of what `decoder.unstack` makes of such parameters."""
  layers = specs['layers']
  count = jax.tree.leaves(layers)[0].shape[0]
  one = jax.tree.map(lambda spec: ParamSpec(spec.shape[1:], spec.axes[1:]), layers)
  return {**specs, 'layers': (one,) * count}
