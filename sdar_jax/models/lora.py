"""Low-rank adapters beside a frozen model's matrices (LoRA).

A kernel W of one layer, its inputs flattened to I and its outputs to O, becomes

  W + (alpha / rank) a b,   a [I, rank], b [rank, O]

Adapters are a tree of their own, the only thing that trains; the model alone is the
reference and, where a method wants it, the teacher. `join` puts them beside the kernels
and `decoder.forward` adds them up layer by layer, so no second model is ever held.

Source: Hu et al. 2021 (arXiv 2106.09685); initial values as in peft: a uniform in
  +-1/sqrt(I), b zero.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sdar_jax.models import sharding

ATTENTION = ('query', 'key', 'value', 'out')
MLP = ('gate', 'up', 'down')
TARGETS = {'all': ATTENTION + MLP, 'attention': ATTENTION, 'mlp': MLP}
A, B = 'lora_a', 'lora_b'

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lora:
  """Settings of adapters; hashable, static under jit.

  Attributes:
    rank: columns of a and rows of b, >= 1.
    alpha: times a b / rank is what is added.
    targets: a key of TARGETS: which kernels have adapters.
  """

  rank: int
  alpha: float
  targets: str = 'all'

  @property
  def scale(self) -> float:
    """What a b is multiplied by."""
    return self.alpha / self.rank


def input_axes(name: str) -> int:
  """Counts the leading axes of a layer's kernel that its input has."""
  return 2 if name == 'out' else 1


def adapter_specs(specs: Tree, lora: Lora) -> Tree:
  """Makes the specs of adapters from those of a model's parameters.

  Args:
    specs: of `ModelConfig.param_specs`; kernels [L, inputs.., outputs..].
    lora: the settings.

  Returns:
    A tree with `lora_a` [L, inputs.., rank] and `lora_b` [L, rank, outputs..] f32 in
    the place of each kernel, split over devices as the kernel's axes are.
  """
  layers: Tree = {}
  for group, parts in specs['layers'].items():
    for name, leaves in parts.items():
      if name in TARGETS[lora.targets]:
        layers.setdefault(group, {})[name] = _pair(name, leaves['kernel'], lora.rank)
  return {'layers': layers}


def _pair(name: str, spec: Any, rank: int) -> Tree:
  cut = 1 + input_axes(name)
  shape, axes = spec.shape, spec.axes
  return {
    A: dataclasses.replace(spec, shape=(*shape[:cut], rank), axes=(*axes[:cut], None)),
    B: dataclasses.replace(
      spec,
      shape=(shape[0], rank, *shape[cut:]),
      axes=(axes[0], None, *axes[cut:]),
    ),
  }


def init(specs: Tree, key: jax.Array) -> Tree:
  """Draws adapters that change nothing yet.

  Args:
    specs: of `adapter_specs`.
    key: PRNG key.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(specs)
  keys = jax.random.split(key, len(leaves))

  def draw(path: Any, spec: Any, key: jax.Array) -> jax.Array:
    if path[-1].key == B:
      return jnp.zeros(spec.shape)
    bound = 1 / math.sqrt(math.prod(spec.shape[1:-1]))
    return jax.random.uniform(key, spec.shape, minval=-bound, maxval=bound)

  drawn = [draw(path, spec, key) for (path, spec), key in zip(leaves, keys)]
  return jax.tree.unflatten(structure, drawn)


def make(specs: Tree, mesh: Mesh, seed: int) -> Tree:
  """Draws the adapters of `init` on their sharding."""
  places = sharding.param_shardings(specs, mesh)
  draw = functools.partial(init, specs)
  return sharding.Program(draw, mesh, out_shardings=places)(jax.random.key(seed))


def join(base: Tree, adapters: Tree) -> Tree:
  """Puts adapters, or their specs, beside the kernels that they belong to."""
  out = dict(base)
  for name, value in adapters.items():
    inside = name in out and isinstance(value, dict)
    out[name] = join(out[name], value) if inside else value
  return out


def joined(base: Tree, adapters: Tree, lora: Lora) -> Tree:
  """Joins a model and adapters; b is multiplied by the scale."""
  scaled = jax.tree_util.tree_map_with_path(
    lambda path, leaf: lora.scale * leaf if path[-1].key == B else leaf, adapters
  )
  return join(base, scaled)


def merge(layer: Tree) -> Tree:
  """Adds the adapters of one layer, if it has any, to its kernels."""
  out = {}
  for name, value in layer.items():
    if isinstance(value, dict):
      out[name] = merge(value)
    elif name == 'kernel' and A in layer:
      change = jnp.tensordot(layer[A], layer[B], 1)
      out[name] = value.astype(change.dtype) + change
    elif name not in (A, B):
      out[name] = value
  return out


def merged(params: Tree) -> Tree:
  """Adds all adapters of a joined tree to its stacked kernels."""
  return {**params, 'layers': jax.vmap(merge)(params['layers'])}
