"""Device programs of the sampler: prefill, copy and decode of slots.

A slot is one row of the cache. Prefill writes the keys and values of all prompt tokens
but the last, a chunk a row; the last prompt token is the first input of the decode
loop, so that every sampled token comes from one program.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdar_jax.models import decoder, lora, parameters, sharding
from sdar_jax.sampler import draw


class Slots(NamedTuple):
  """How far every slot is; all [S].

  Attributes:
    active: bool, the slot is decoding.
    token: i32, the newest token, whose keys and values are not in the cache yet.
    position: i32, its position.
    count: i32, response tokens so far.
  """

  active: Any
  token: Any
  position: Any
  count: Any


class Options(NamedTuple):
  """Sampling options of every slot; all [S] but where stated.

  Attributes:
    limit: i32, response tokens at most.
    key: [S, 2] u32, the request's random key.
    temperature: f32.
    top_k: i32.
    top_p: f32.
    stop_ids: [S, K] i32, padded with -1.
  """

  limit: Any
  key: Any
  temperature: Any
  top_k: Any
  top_p: Any
  stop_ids: Any


class Responses(NamedTuple):
  """Sampled so far: ids [S, R] i32 and log-probabilities [S, R] f32, nats."""

  ids: Any
  logprobs: Any


def prefill(
  config: decoder.ModelConfig,
  dtype: Any,
  weights: decoder.Params,
  cache: decoder.Cache,
  tokens: jax.Array,
  positions: jax.Array,
  rows: jax.Array,
) -> decoder.Cache:
  """Writes the keys and values of chunks of prompts into their slots.

  Chunks of one slot see each other. The last layer's mixing and MLP are never
  computed: the cache does not need them.

  Args:
    config: the model.
    dtype: compute dtype.
    weights: from `decode_weights`.
    cache: of all slots.
    tokens: [R, C] i32.
    positions: [R, C] i32; -1 where there is no token, which writes nothing.
    rows: [W, R / W] i32, the slot of each chunk, as in `decoder.forward`.

  Returns:
    The updated cache.
  """
  return decoder.forward(
    config, weights, tokens, positions, cache=cache, rows=rows, dtype=dtype
  )[1]


def copy(cache: decoder.Cache, sources: jax.Array, targets: jax.Array) -> decoder.Cache:
  """Copies whole slots: target i becomes the former source i.

  Args:
    cache: of all slots.
    sources: [C] i32 slots.
    targets: [C] i32 slots; an index past the end drops the copy.

  Returns:
    The updated cache.
  """
  return jax.tree.map(
    lambda array: array.at[targets].set(array[sources], mode='drop'), cache
  )


def decode(
  config: decoder.ModelConfig,
  dtype: Any,
  valid_vocab: int,
  weights: decoder.Params,
  cache: decoder.Cache,
  slots: Slots,
  options: Options,
  responses: Responses,
  max_steps: jax.Array,
  max_active: jax.Array,
) -> tuple[decoder.Cache, Slots, Responses]:
  """Samples a token for every active slot, again and again.

  Stops after `max_steps` tokens per slot, or as soon as no more than `max_active`
  slots are active.

  Args:
    config: the model.
    dtype: compute dtype.
    valid_vocab: ids from here on are impossible.
    weights: from `decode_weights`.
    cache: of all slots.
    slots: the state of all slots.
    options: what their requests ask for.
    responses: what they have sampled so far.
    max_steps: scalar i32.
    max_active: scalar i32.

  Returns:
    The updated cache, slots and responses.
  """

  def proceed(carry):
    step, _, slots, _ = carry
    active = slots.active.sum()
    return (step < max_steps) & (active > max_active) & (active > 0)

  def body(carry):
    step, cache, slots, responses = carry
    logits, cache = _next_logits(config, dtype, weights, cache, slots)
    ids, logprobs = draw.draw(
      logits,
      draw.uniforms(options.key, slots.count),
      options.temperature,
      options.top_k,
      options.top_p,
      valid_vocab,
    )
    responses = _append(responses, slots, ids, logprobs)
    return step + 1, cache, _next_slots(slots, options, ids), responses

  carry = (jnp.int32(0), cache, slots, responses)
  return jax.lax.while_loop(proceed, body, carry)[1:]


def _next_logits(config, dtype, weights, cache, slots):
  # Idle slots write before the beginning, that is, nothing; and a long cache is read no
  # further than the longest of the others has come.
  positions = jnp.where(slots.active, slots.position, -1)[:, None]
  tokens = sharding.constrain(slots.token[:, None], ('batch', None))
  hidden, cache = decoder.forward(
    config, weights, tokens, positions, cache=cache, dtype=dtype
  )
  return decoder.logits(config, weights, hidden[:, 0]), cache


def _append(responses, slots, ids, logprobs):
  count, width = responses.ids.shape
  rows = jnp.arange(count)
  column = jnp.where(slots.active, slots.count, width)
  return Responses(
    responses.ids.at[rows, column].set(ids, mode='drop'),
    responses.logprobs.at[rows, column].set(logprobs, mode='drop'),
  )


def _next_slots(slots, options, ids):
  active = slots.active
  count = slots.count + active
  stopped = (ids[:, None] == options.stop_ids).any(-1)
  return Slots(
    active=active & ~stopped & (count < options.limit),
    token=jnp.where(active, ids, slots.token),
    position=slots.position + active,
    count=count,
  )


def decode_weights(params: decoder.Params, dtype: Any) -> decoder.Params:
  """Adds adapters, slices layers and casts matrices, once for all tokens."""
  return decoder.unstack(decoder.compute_params(lora.merged(params), dtype))


def prefill_rows(tokens: int, chunk: int, ways: int) -> int:
  """Counts the chunks of a prefill call, as many for each device."""
  return -(-max(1, tokens // chunk) // ways) * ways


class Programs:
  """The jitted programs for one set of shapes, with their shardings.

  Attributes:
    params_sharding, cache_sharding: of policy and cache, or None for one device.
    make_cache: () -> an empty cache.
    weights: params -> what `prefill` and `decode` read.
    prefill, copy, decode: the functions of these names; `cache` is donated.
  """

  def __init__(
    self,
    config: decoder.ModelConfig,
    slots: int,
    length: int,
    valid_vocab: int,
    dtype: Any,
    mesh: Mesh | None,
  ):
    """Compiles nothing yet.

    Args:
      config: the model.
      slots: rows of the cache, S.
      length: positions of the cache.
      valid_vocab: ids from here on are impossible.
      dtype: dtype of computation and of the cache.
      mesh: a mesh from `sharding.make_mesh`, or None for one device.
    """
    make_cache = functools.partial(decoder.init_cache, config, slots, length, dtype)
    first = functools.partial(prefill, config, dtype)
    loop = functools.partial(decode, config, dtype, valid_vocab)
    self.params_sharding = params = None
    self.cache_sharding = cache = weights = host = None
    if mesh is not None:
      # The host's small arrays are replicated.
      host = NamedSharding(mesh, PartitionSpec())
      params, weights = _weight_shardings(config, mesh)
      cache = _cache_shardings(jax.eval_shape(make_cache), mesh)
      self.params_sharding, self.cache_sharding = params, cache
    self.make_cache = sharding.Program(make_cache, mesh, out_shardings=cache)
    self.weights = sharding.Program(
      lambda params: decode_weights(params, dtype),
      mesh,
      in_shardings=(params,),
      out_shardings=weights,
    )
    self.prefill = sharding.Program(
      first,
      mesh,
      in_shardings=(weights, cache, host, host, host),
      out_shardings=cache,
      donate_argnums=1,
    )
    self.copy = sharding.Program(
      copy,
      mesh,
      in_shardings=(cache, host, host),
      out_shardings=cache,
      donate_argnums=0,
    )
    self.decode = sharding.Program(
      loop,
      mesh,
      in_shardings=(weights, cache, *[host] * 5),
      out_shardings=(cache, host, host),
      donate_argnums=1,
    )


def _weight_shardings(config: decoder.ModelConfig, mesh: Mesh) -> tuple[Any, Any]:
  """Places the policy, and what the sampler reads of it."""
  specs = parameters.unstacked_specs(config.param_specs())
  # Whole over fsdp: else every layer would be gathered for every token.
  weights = sharding.param_shardings(specs, mesh, whole=('fsdp',))
  return sharding.param_shardings(config.policy_specs(), mesh), weights


def _cache_shardings(cache: decoder.Cache, mesh: Mesh) -> decoder.Cache:
  """Places a cache: split by slot and head."""
  axes = ('batch', 'kv_heads', None, None)
  place = lambda leaf: sharding.partition_spec(axes, leaf.shape, mesh)
  return jax.tree.map(lambda leaf: NamedSharding(mesh, place(leaf)), cache)


@functools.lru_cache(maxsize=8)
def programs(
  config: decoder.ModelConfig,
  slots: int,
  length: int,
  valid_vocab: int,
  dtype: Any,
  mesh: Mesh | None,
) -> Programs:
  """Finds the programs of these shapes, shared among samplers."""
  return Programs(config, slots, length, valid_vocab, dtype, mesh)
