"""Memory that a run will need of each device, by arithmetic.

What is kept is exact: shapes over shards. Temporaries are estimates of what XLA makes
of a scanned decoder; `benchmarks/fits.py` compiles the programs themselves.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from sdar_jax.models import attention, decoder, parameters, sharding

GIB = 2**30
_F32 = 4  # Bytes.
# Copies of an array that XLA keeps at a time, seen in compiled programs.
_SCORES, _LOGITS, _BACK = 3, 2, 1.5
# Which keys make a part smaller.
_CURES = {
  'trained': 'config.mesh.fsdp or config.model.lora_rank',
  'moments': 'config.optimizer.moments or config.mesh.fsdp',
  'gradients': 'config.mesh.fsdp or config.model.lora_rank',
  'initial': 'config.algorithm.kl_coef=0 or config.mesh.fsdp',
  'teacher': 'config.algorithm.teacher_weights or config.mesh.fsdp',
  'copy that samples': 'more devices for each process',
  'weights to decode': 'config.mesh.tensor',
  'cache': 'config.rollout.slots or the longest prompt',
  'activations': 'config.train.microbatch_rows or its longest bucket',
  'prefill': 'config.rollout.prefill_tokens',
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a run that decide what its devices must hold.

  Attributes:
    rows, length: of the largest microbatch.
    teacher_length: of its teacher's rows; 0 without a teacher.
    several: a minibatch is more than one microbatch.
    logit_positions: as in the config.
    scored_share: of all tokens, those that an output head runs on.
    remat: what is recomputed, of `decoder.REMATS`.
    slots, positions: of the sampler's cache.
    prefill_rows, prefill_chunk: of its prefill, chunks and tokens of one.
    dtype: the compute type.
    moments: numbers that the optimizer keeps for each weight.
    moments_at: where they are between updates, 'device' or 'host'.
    needs_initial: the initial policy is kept.
    keeps_teacher: a teacher of its own is kept.
  """

  rows: int
  length: int
  teacher_length: int
  several: bool
  logit_positions: int
  scored_share: float
  remat: str
  slots: int
  positions: int
  prefill_rows: int
  prefill_chunk: int
  dtype: Any
  moments: int
  moments_at: str
  needs_initial: bool
  keeps_teacher: bool


def plan(
  model: decoder.ModelConfig,
  mesh: Mesh | AbstractMesh,
  sizes: Sizes,
  here: Mesh | AbstractMesh | None = None,
) -> dict[str, dict[str, float]]:
  """Adds up what one device must hold in each phase of a step.

  Args:
    model: architecture, with its adapters if any.
    mesh: of devices, which are not touched.
    sizes: of the run.
    here: its part that samples; None is all of it, and the weights are no copy.

  Returns:
    {phase: {part: bytes}} of the phases rollout, scoring and update.
  """
  compute = jnp.dtype(sizes.dtype).itemsize
  specs = model.param_specs()
  whole = _local(specs, mesh)
  trained = _local(model.adapter_specs(), mesh) if model.lora else whole
  moments = _F32 * sizes.moments * trained
  away = sizes.moments_at == 'host'
  kept = {'trained': _F32 * trained, 'moments': 0.0 if away else moments}
  kept['initial'] = compute * whole * (sizes.needs_initial or model.lora is not None)
  kept['teacher'] = _F32 * trained * sizes.keeps_teacher
  if here is not None:
    kept['copy that samples'] = compute * _local(specs, here)
  samples = here or mesh
  decoded = compute * _local(specs, samples, ('fsdp',))
  work = lambda rows, length, gradient: _activations(
    model, mesh, sizes, rows, length, gradient
  )
  return {
    'rollout': {
      **kept,
      'weights to decode': decoded,
      'cache': _cache(model, samples, sizes),
      'prefill': _prefill(model, samples, sizes),
    },
    'scoring': {
      **kept,
      'activations': max(
        work(sizes.rows, sizes.length, False),
        work(sizes.rows, sizes.teacher_length, False),
      ),
    },
    'update': {
      **kept,
      'gradients': _F32 * trained * (1 + sizes.several),
      # Moments come back when the activations are gone.
      'activations': max(work(sizes.rows, sizes.length, True), away * _BACK * moments),
    },
  }


def table(phases: Mapping[str, Mapping[str, float]], limit: float) -> str:
  """Writes a plan as text: a line for each part, a column for each phase.

  Args:
    phases: of `plan`.
    limit: bytes that a program may use of one device; inf or 0 if unknown.
  """
  totals = {phase: sum(parts.values()) for phase, parts in phases.items()}
  small = max(totals.values()) < GIB
  unit, name = (2**20, 'MiB') if small else (GIB, 'GiB')
  parts = dict.fromkeys(part for found in phases.values() for part in found)
  rows = [(p, [found.get(p, 0.0) for found in phases.values()]) for p in parts]
  rows = [*(row for row in rows if any(row[1])), ('together', [*totals.values()])]
  said = [(p, [f'{size / unit:.2f}' if size else '' for size in r]) for p, r in rows]
  lines = [(f'{name} of each device', [*phases]), *said]
  if limit and not math.isinf(limit):
    blank = [''] * (len(phases) - 1)
    lines.append(('it has', [*blank, f'{limit / unit:.2f}']))
  return ''.join(f'{p:20}{"".join(f"{t:>10}" for t in texts)}\n' for p, texts in lines)


def complaint(phases: Mapping[str, Mapping[str, float]], limit: float) -> str:
  """Says which phase does not fit, and what to change; '' if all do.

  Args:
    phases: of `plan`.
    limit: bytes that a program may use of one device; inf or 0 if unknown.
  """
  name = max(phases, key=lambda phase: sum(phases[phase].values()))
  parts = sorted(phases[name].items(), key=lambda item: -item[1])
  total = sum(phases[name].values())
  if not limit or total <= limit:
    return ''
  said = ', '.join(f'{part} {size / GIB:.1f}' for part, size in parts[:3])
  cures = dict.fromkeys(_CURES[part] for part, _ in parts[:2])
  return (
    f'{name} needs about {total / GIB:.1f} GiB of each device, which has'
    f' {limit / GIB:.1f} ({said}): change {"; or ".join(cures)}'
  )


def check(model: decoder.ModelConfig, mesh: Mesh, sizes: Sizes) -> None:
  """Checks that a run fits its devices.

  Raises:
    ValueError: it does not; one line with what to change.
  """
  here = mesh.local_mesh if jax.process_count() > 1 else None
  said = complaint(plan(model, mesh, sizes, here), limit(mesh))
  if said:
    raise ValueError(said)


def limit(mesh: Mesh) -> float:
  """Reads the bytes that a program may use of each device; inf if unknown."""
  found = [(device.memory_stats() or {}) for device in mesh.local_devices]
  return min(stats.get('bytes_limit', math.inf) for stats in found)


def moments(tx: optax.GradientTransformation) -> int:
  """Counts the numbers that an optimizer keeps for each weight."""
  weight = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  state = jax.eval_shape(tx.init, {'weight': weight})
  return sum(leaf.size for leaf in jax.tree.leaves(state)) // weight.size


def _local(specs: Any, mesh: Any, whole: tuple[str, ...] = ()) -> int:
  """Counts the weights of a tree of ParamSpec on one device."""

  def count(spec: parameters.ParamSpec) -> int:
    entries = sharding.partition_spec(spec.axes, spec.shape, mesh, whole)
    return math.prod(spec.shape) // _ways(entries, mesh)

  return sum(count(spec) for spec in jax.tree.leaves(specs))


def _ways(entries: Any, mesh: Any) -> int:
  names = [n for e in entries for n in ((e,) if isinstance(e, str) else e or ())]
  return math.prod(mesh.shape[name] for name in names)


def _rows(rows: int, mesh: Any) -> int:
  return math.ceil(rows / (mesh.shape['data'] * mesh.shape['fsdp']))


def _cache(model: decoder.ModelConfig, mesh: Any, sizes: Sizes) -> float:
  return _rows(sizes.slots, mesh) * model.num_layers * _slot(model, mesh, sizes)


def _slot(model: decoder.ModelConfig, mesh: Any, sizes: Sizes) -> int:
  """Counts bytes of a slot's keys and values of one layer."""
  tensor = mesh.shape['tensor']
  heads = model.num_kv_heads
  heads = heads // tensor if heads % tensor == 0 else heads
  row = 2 * heads * model.head_dim * sizes.positions
  return row * jnp.dtype(sizes.dtype).itemsize


def _prefill(model: decoder.ModelConfig, mesh: Any, sizes: Sizes) -> float:
  """Estimates temporaries of a prefill: those of attention or of the MLP."""
  rows, tensor = _rows(sizes.prefill_rows, mesh), mesh.shape['tensor']
  seen = sizes.positions
  if model.attention != 'dense':
    seen = min(seen, attention.DENSE_KEYS)
  tokens, heads = rows * sizes.prefill_chunk, model.num_heads / tensor
  attends = _SCORES * tokens * heads * seen * _F32
  attends += rows * _slot(model, mesh, sizes)
  return max(attends, _layer(model, mesh, sizes, tokens))


def _layer(model: decoder.ModelConfig, mesh: Any, sizes: Sizes, tokens: float) -> float:
  """Estimates temporaries of a layer, without attention's scores."""
  tensor = mesh.shape['tensor']
  heads, hidden = model.num_heads / tensor, model.intermediate_size / tensor
  wide = 6 * model.hidden_size + 3 * hidden + 3 * heads * model.head_dim
  return tokens * wide * jnp.dtype(sizes.dtype).itemsize


def _activations(
  model: decoder.ModelConfig,
  mesh: Any,
  sizes: Sizes,
  rows: int,
  length: int,
  gradient: bool,
) -> float:
  """Estimates temporaries of a pass over rows."""
  if not length:
    return 0.0
  compute, tensor = jnp.dtype(sizes.dtype).itemsize, mesh.shape['tensor']
  tokens, width = _rows(rows, mesh) * length, model.hidden_size
  heads = model.num_heads / tensor
  seen = min(length, attention.DENSE_KEYS)  # Keys whose scores are held at a time.
  if model.attention == 'dense':
    seen = length
  layer = _layer(model, mesh, sizes, tokens)
  scores = _SCORES * _rows(rows, mesh) * heads * min(length, seen) * seen * _F32
  total = layer + scores
  vocab = model.vocab_size / (tensor if model.vocab_size % tensor == 0 else 1)
  scored = math.ceil(tokens * sizes.scored_share)
  positions = min(_rows(sizes.logit_positions, mesh), scored)
  total += _LOGITS * positions * vocab * _F32 + vocab * width * compute
  if gradient:
    total += model.num_layers * _stored(model, mesh, sizes, tokens, layer + scores)
    total += vocab * width * _F32 + layer  # The head has a gradient, too.
  return total


def _stored(
  model: decoder.ModelConfig, mesh: Any, sizes: Sizes, tokens: float, whole: float
) -> float:
  """Estimates what is kept of a layer, of `whole`, for its backward pass."""
  if sizes.remat == 'none':
    return whole
  numbers = model.hidden_size
  if sizes.remat == 'dots':
    tensor = mesh.shape['tensor']
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    split = heads + 2 * model.intermediate_size
    numbers += 2 * model.hidden_size + split / tensor
  return tokens * numbers * jnp.dtype(sizes.dtype).itemsize
