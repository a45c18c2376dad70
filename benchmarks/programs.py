"""The programs of a run, lowered for shapes: no weights, no devices.

What `learner` and `sampler` compile in a run of a config, with arguments that have
shapes and shardings and nothing in them.
"""

import dataclasses
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sdar_jax import build
from sdar_jax.batching import packing
from sdar_jax.learner.learner import Learner
from sdar_jax.learner.optimizer import TrainState
from sdar_jax.models import decoder, lora, parameters, sharding
from sdar_jax.sampler import decoding, sampler


@dataclasses.dataclass(frozen=True)
class Parts:
  """A learner and a sampler's programs of a config, for a mesh.

  Attributes:
    config: of the run.
    model: architecture of the policy.
    mesh: of devices, perhaps of a topology.
    learner: of the run.
  """

  config: ConfigDict
  model: decoder.ModelConfig
  mesh: Mesh
  learner: Learner

  def array(self, dtype: Any, *shape: int, at: NamedSharding | None = None) -> Any:
    """A shape with a sharding; by default the same everywhere."""
    at = at or NamedSharding(self.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

  def rows(self, dtype: Any, *shape: int) -> Any:
    """A shape of rows, split as batches are."""
    at = NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))
    return self.array(dtype, *shape, at=at)

  @property
  def dtype(self) -> Any:
    """The type that computes."""
    return jnp.dtype(self.config.model.dtype)

  def model_weights(self) -> Any:
    """Shapes of the model: float32, or frozen in the compute type."""
    dtype = self.dtype if self.model.lora else jnp.float32
    return self._shapes(self.model.param_specs(), dtype)

  def trained(self) -> Any:
    """Shapes of what trains: the model, or adapters."""
    specs = self.model.adapter_specs()
    return self._shapes(specs, jnp.float32) if specs else self.model_weights()

  def joined(self) -> Any:
    """Shapes of what a forward pass reads."""
    if self.model.lora:
      return lora.join(self.model_weights(), self.trained())
    return self.model_weights()

  def reference(self) -> Any:
    """Shapes of the initial policy, in the compute type."""
    return self._shapes(self.model.param_specs(), self.dtype)

  def decoded(self) -> Any:
    """Shapes of what decoding reads."""
    specs = parameters.unstacked_specs(self.model.param_specs())
    return self._shapes(specs, self.dtype, ('fsdp',))

  def _shapes(self, specs: Any, dtype: Any, whole: tuple[str, ...] = ()) -> Any:
    places = sharding.param_shardings(specs, self.mesh, whole)
    return jax.tree.map(
      lambda spec, at: self.array(dtype, *spec.shape, at=at), specs, places
    )

  def state(self) -> TrainState:
    """Shapes of everything that training changes."""
    params, learner = self.trained(), self.learner
    moments = jax.tree.map(
      lambda leaf, at: self.array(leaf.dtype, *leaf.shape, at=at),
      jax.eval_shape(learner._tx.init, params),
      learner.state_shardings.opt_state,
    )
    teacher = params if learner.keeps_teacher else ()
    number = self.array(jnp.int32)
    return TrainState(params, moments, teacher, number, number, number)

  def sheet(self, sequences: int, length: int, response: int) -> dict[str, Any]:
    """Shapes of a sheet of one row a sequence; see `batching.packing`."""
    lanes = self.mesh.shape['data'] * self.mesh.shape['fsdp']
    places = math.ceil(sequences * length / lanes / packing.SHARES[0])
    return {
      'tokens': self.rows(jnp.int32, sequences, length),
      'places': self.rows(jnp.int32, lanes, places),
      'targets': self.rows(jnp.int32, lanes, places),
      'response_mask': self.rows(bool, sequences, response),
    }

  def microbatch(
    self, sequences: int, length: int, response: int, teacher_length: int = 0
  ) -> dict[str, Any]:
    """Shapes of a scored sheet with its credit.

    Args:
      sequences: S.
      length: T.
      response: R.
      teacher_length: T of a teacher whose distributions are read; 0 for none.
    """
    out = self.sheet(sequences, length, response)
    names = 'old_logprobs', 'ref_logprobs', 'teacher_logprobs', 'advantages', 'gate'
    out |= {name: self.rows(jnp.float32, sequences, response) for name in names}
    out |= {name: self.array(jnp.float32) for name in ('gate_mean', 'distill_scale')}
    out |= {
      'turn_ids': self.rows(jnp.int32, sequences),
      'teaching': self.rows(jnp.float32, sequences),
      'normaliser': self.array(jnp.int32),
    }
    if teacher_length:
      theirs = self.sheet(sequences, teacher_length, response)
      out |= {f'teacher_{name}': theirs[name] for name in ('tokens', 'places')}
      out['teacher_places'] = out['places']
    return out


def make(config: ConfigDict, model: decoder.ModelConfig, mesh: Mesh) -> Parts:
  """Builds the parts of a config without weights."""
  algorithm = build.make_algorithm(config)
  hyper = build.make_hyperparameters(config)
  tokenizer = types.SimpleNamespace(len_vocab=model.vocab_size)
  learner = build.make_learner(config, tokenizer, mesh, model, algorithm, hyper)
  return Parts(config, model, mesh, learner)


@dataclasses.dataclass(frozen=True)
class Call:
  """A program of a run with shapes for arguments.

  Attributes:
    program: what is compiled.
    arguments: trees of shapes with shardings.
  """

  program: sharding.Program
  arguments: tuple[Any, ...]

  def lower(self) -> Any:
    """Lowers the program for these shapes."""
    return self.program.lower(*self.arguments)


def calls(parts: Parts) -> dict[str, Call]:
  """Finds the largest call of each program of a run."""
  return of_learner(parts) | of_sampler(parts)


def of_learner(parts: Parts) -> dict[str, Call]:
  """Finds the calls of scoring, gradient, sum and update."""
  c, learner, state = parts.config, parts.learner, parts.state()
  rows, response = c.train.microbatch_rows, c.rollout.max_response_tokens
  length, longest = c.train.length_buckets[-1], c.train.teacher_buckets[-1]
  compared = longest if learner.reads_distributions else 0
  arrays = parts.microbatch(rows, length, response, compared)
  own, theirs = (parts.sheet(rows, size, response) for size in (length, longest))
  joined, params = parts.joined(), state.params
  teacher = joined if learner.reads_distributions else ()
  base = parts.model_weights() if parts.model.lora else ()
  loss = parts.array(jnp.float32)
  return {
    'gradient': Call(learner._gradient, (params, base, teacher, arrays)),
    'score': Call(learner._score_student, (joined, own)),
    'score teacher': Call(learner._score_tokens, (joined, theirs)),
    'sum': Call(learner._add, 2 * (((loss, {}), params),)),
    'update': Call(learner._apply, (state, params, loss)),
  }


def of_sampler(parts: Parts) -> dict[str, Call]:
  """Finds the calls of the weights' cast, prefill and decode."""
  c, programs = parts.config.rollout, _programs(parts)
  slots, joined = c.slots, parts.joined()
  ways = parts.mesh.shape['data'] * parts.mesh.shape['fsdp']
  rows = decoding.prefill_rows(c.prefill_tokens, c.prefill_chunk, ways)
  chunks = parts.array(jnp.int32, rows, c.prefill_chunk)
  owners = parts.array(jnp.int32, ways, rows // ways)
  one = lambda dtype, *shape: parts.array(dtype, slots, *shape)
  whole, real = jnp.int32, jnp.float32
  state = decoding.Slots(one(bool), one(whole), one(whole), one(whole))
  options = decoding.Options(
    limit=one(whole),
    key=one(jnp.uint32, 2),
    temperature=one(real),
    top_k=one(whole),
    top_p=one(real),
    stop_ids=one(whole, sampler.MAX_STOP_IDS),
  )
  width = c.max_response_tokens
  responses = decoding.Responses(one(whole, width), one(real, width))
  number = parts.array(whole)
  cast = jax.eval_shape(lambda p: decoding.decode_weights(p, parts.dtype), joined)
  weights = jax.tree.map(
    lambda leaf, at: parts.array(leaf.dtype, *leaf.shape, at=at.sharding),
    cast,
    parts.decoded(),
  )
  held = (cache(parts), state, options, responses, number, number)
  return {
    'weights': Call(programs.weights, (joined,)),
    'prefill': Call(programs.prefill, (weights, cache(parts), chunks, chunks, owners)),
    'decode': Call(programs.decode, (weights, *held)),
  }


def cache(parts: Parts) -> decoder.Cache:
  """Shapes of the sampler's cache."""
  dtype = jnp.dtype(parts.config.model.dtype)
  slots, programs = parts.config.rollout.slots, _programs(parts)
  make = lambda: decoder.init_cache(parts.model, slots, _length(parts), dtype)
  return jax.tree.map(
    lambda leaf, at: parts.array(dtype, *leaf.shape, at=at),
    jax.eval_shape(make),
    programs.cache_sharding,
  )


def _length(parts: Parts) -> int:
  """Counts the positions of the cache, as the sampler does."""
  c = parts.config
  skills = c.skills.token_budget * c.eval.with_skills
  return c.rollout.max_prompt_tokens + skills + c.rollout.max_response_tokens


def _programs(parts: Parts) -> decoding.Programs:
  c = parts.config
  return decoding.programs(
    parts.model,
    c.rollout.slots,
    _length(parts),
    parts.model.vocab_size,
    jnp.dtype(c.model.dtype),
    parts.mesh,
  )
