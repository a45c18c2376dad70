"""A copy of the policy on the devices of each process."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from sdar_jax.models import decoder, sharding


class Replica:
  """Copies global weights to every process, split over its own devices.

  An episode ends when it ends, so processes sample at their own pace, which no program
  over all devices could. The devices send the weights to each other once per update, in
  the type that computes with them; no host holds them. A single process samples with
  the weights themselves.

  Args:
    model: architecture, with its adapters if any.
    mesh: of all devices.
    dtype: of computation.
  """

  def __init__(self, model: decoder.ModelConfig, mesh: Mesh, dtype: Any):
    self._alone = jax.process_count() == 1
    if self._alone:
      return
    specs = model.policy_specs()
    self._here = sharding.param_shardings(specs, mesh.local_mesh)
    self._spread = sharding.param_shardings(specs, _by_process(mesh))
    self._cast = lambda weights: weights
    if model.lora is None and jnp.dtype(dtype) != jnp.float32:
      self._cast = sharding.Program(
        functools.partial(decoder.compute_params, dtype=dtype),
        mesh,
        out_shardings=sharding.param_shardings(specs, mesh),
      )

  def __call__(self, weights: Any) -> Any:
    """Gives the weights on this process's part of the mesh."""
    if self._alone:
      return weights
    spread = jax.device_put(self._cast(weights), self._spread)
    return jax.tree.map(
      lambda array, place: jax.make_array_from_single_device_arrays(
        array.shape, place, [shard.data for shard in array.addressable_shards]
      ),
      spread,
      self._here,
    )


def _by_process(mesh: Mesh) -> Mesh:
  """Adds an axis of processes, over which nothing is split, to a mesh."""
  here, count = mesh.local_mesh.devices.shape, jax.process_count()
  grid = [[d for d in mesh.devices.flat if d.process_index == i] for i in range(count)]
  axes = ('processes', *sharding.AXES)
  kinds = (AxisType.Auto,) * len(axes)
  return Mesh(np.reshape(np.asarray(grid), (count, *here)), axes, axis_types=kinds)
