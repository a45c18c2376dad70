"""Placement of arrays: a table from logical axes to mesh axes.

A mesh has three axes. `data` splits rows and replicates parameters, `fsdp` splits
rows and parameters, `tensor` splits heads, the hidden units of the MLP and the
vocabulary. A logical axis whose size the mesh axis does not divide is an error, with
two exceptions that are replicated instead: `kv_heads` (real models have as few as 2)
and `vocab` (a tokenizer may have any size).
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor')


@dataclasses.dataclass(frozen=True)
class ShardingRules:
  """Mesh axes of each logical axis; None is replicated."""

  batch: tuple[str, ...] | str | None = ('data', 'fsdp')
  vocab: tuple[str, ...] | str | None = 'tensor'
  embed: tuple[str, ...] | str | None = 'fsdp'
  heads: tuple[str, ...] | str | None = 'tensor'
  kv_heads: tuple[str, ...] | str | None = 'tensor'
  mlp: tuple[str, ...] | str | None = 'tensor'
  layers: tuple[str, ...] | str | None = None
  head_dim: tuple[str, ...] | str | None = None
  norm: tuple[str, ...] | str | None = None


RULES = ShardingRules()
REPLICATED_WHEN_INDIVISIBLE = ('kv_heads', 'vocab')


def make_mesh(data: int, fsdp: int, tensor: int, devices: Any = None) -> Mesh:
  """The mesh of shape (data, fsdp, tensor) over the first devices.

  Args:
    data: number of ways rows are split with parameters replicated.
    fsdp: number of ways rows and parameters are split.
    tensor: number of ways heads, hidden units and vocabulary are split.
    devices: the devices to use; None is the first ones of `jax.devices()`, as many as
      the product of the sizes.

  Returns:
    A mesh whose axes are named 'data', 'fsdp' and 'tensor'.

  Raises:
    ValueError: a size is below 1, or there are fewer devices than the product; where
      `devices` are given or processes are several, other than the product; or those of
      a process are no box of the mesh; or JAX has no device.
  """
  sizes = (data, fsdp, tensor)
  wanted = math.prod(sizes)
  if devices is None:
    found = _devices()
    devices = found if jax.process_count() > 1 else found[:wanted]
  devices = list(devices)
  if min(sizes) < 1 or wanted != len(devices):
    raise ValueError(
      f'config.mesh data={data} fsdp={fsdp} tensor={tensor} wants {wanted} devices,'
      f' there are {len(devices)}: change the sizes, whose product is the number used'
    )
  auto = (AxisType.Auto,) * len(AXES)
  mesh = jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)
  if jax.process_count() == 1 or _in_boxes(_owners(mesh)):
    return mesh
  return _boxed(mesh)


def _boxed(mesh: Mesh) -> Mesh:
  """Orders a mesh by processes, where JAX followed the wiring."""
  devices = sorted(mesh.devices.flat, key=lambda d: (d.process_index, d.id))
  grid = np.reshape(np.asarray(devices), mesh.devices.shape)
  boxed = Mesh(grid, AXES, axis_types=mesh.axis_types)
  if _in_boxes(_owners(boxed)):
    return boxed
  sizes = ' '.join(f'{name}={size}' for name, size in mesh.shape.items())
  count = len(devices) // jax.process_count()
  raise ValueError(
    f'config.mesh {sizes}: the {count} devices of a process are no box of it: give'
    ' tensor, or tensor*fsdp, a size that divides them or that they divide'
  )


def _owners(mesh: Mesh) -> np.ndarray:
  return np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)


def _in_boxes(owners: np.ndarray) -> bool:
  """Tells whether the devices of each process are a box, all of one shape.

  Args:
    owners: process of each device of a mesh.
  """
  shapes = set()
  for owner in np.unique(owners):
    places = np.argwhere(owners == owner)
    shape = tuple(places.max(0) - places.min(0) + 1)
    if math.prod(shape) != len(places):
      return False
    shapes.add(shape)
  return len(shapes) <= 1


def _devices() -> list[jax.Device]:
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # The latter says nothing.
    asked = os.environ.get('JAX_PLATFORMS', '')
    why = ' '.join(str(error).split()[:60]) or 'its back end does not start'
    raise ValueError(
      f'JAX finds no device with JAX_PLATFORMS={asked!r}: {why}; unset the variable or'
      ' install JAX for that device'
    ) from error


# What is called while programs are only compiled.
_waiting: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar(
  'waiting', default=None
)


@contextlib.contextmanager
def lowering() -> Iterator[list[Callable[[], None]]]:
  """Lowers programs when they are called, and runs none.

  They give shapes instead of arrays then, which they also take.

  Yields:
    for each call so far what compiles its program, in any thread; after it the same
    call compiles nothing.
  """
  found: list[Callable[[], None]] = []
  token = _waiting.set(found)
  try:
    yield found
  finally:
    _waiting.reset(token)


class Program:
  """A jitted function, traced and run under its mesh.

  `jax.jit` with NamedSharding in and out is what pjit means today. Only under
  `jax.set_mesh` does `constrain` hold: without it every device may compute every row.
  """

  def __init__(self, function: Callable[..., Any], mesh: Mesh | None, **options: Any):
    """Compiles nothing yet.

    Args:
      function: pure, of arrays.
      mesh: a mesh from `make_mesh`, or None for one device.
      options: of `jax.jit`.
    """
    self._mesh, self._jitted = mesh, jax.jit(function, **options)

  def __call__(self, *args: Any) -> Any:
    """Runs the function; compiles it for shapes that are new."""
    waiting = _waiting.get()
    with self._on_mesh():
      if waiting is None:
        return self._jitted(*args)
      waiting.append(functools.partial(self._compile, self._jitted.lower(*args)))
      return jax.eval_shape(self._jitted, *args)

  def lower(self, *args: Any) -> Any:
    """Lowers the function for arrays, or shapes, without running it."""
    with self._on_mesh():
      return self._jitted.lower(*args)

  def _compile(self, lowered: Any) -> None:
    with self._on_mesh():  # JAX finds it again by the mesh, too.
      lowered.compile()

  def _on_mesh(self) -> Any:
    return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def place(tree: Any, shardings: Any) -> Any:
  """Puts host arrays that every process holds on the devices of all.

  Args:
    tree: of host arrays.
    shardings: a tree of NamedSharding, or of a part of it one for all below.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  return jax.tree.map(
    lambda sharding, part: jax.tree.map(
      lambda value: jax.make_array_from_process_local_data(
        sharding, np.asarray(value), global_shape=np.shape(value)
      ),
      part,
    ),
    shardings,
    tree,
  )


def fetch(tree: Any) -> Any:
  """Brings arrays to the host, those of other processes' devices, too."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def local_mesh(mesh: Mesh) -> Mesh:
  """Gives the part of a mesh that consists of this process's devices."""
  return mesh if jax.process_count() == 1 else mesh.local_mesh


def partition_spec(
  axes: tuple[str | None, ...],
  shape: tuple[int, ...],
  mesh: Mesh,
  whole: tuple[str, ...] = (),
) -> PartitionSpec:
  """The mesh axes of an array with logical `axes` and `shape`.

  Args:
    axes: one logical axis name per dimension; None is replicated.
    shape: the array's shape.
    mesh: a mesh from `make_mesh`.
    whole: mesh axes over which nothing is split.

  Returns:
    One entry per dimension.

  Raises:
    ValueError: a dimension does not divide by its mesh axes.
  """
  entries = []
  for axis, size in zip(axes, shape, strict=True):
    entry = None if axis is None else getattr(RULES, axis)
    names = (entry,) if isinstance(entry, str) else entry or ()
    names = tuple(name for name in names if name not in whole)
    ways = math.prod(mesh.shape[name] for name in names)
    if size % ways:
      if axis not in REPLICATED_WHEN_INDIVISIBLE:
        raise ValueError(
          f'{axis}={size} does not divide by mesh {"*".join(names)}={ways}: '
          'change the mesh sizes in the config'
        )
      names = ()
    entries.append(names[0] if len(names) == 1 else names or None)
  return PartitionSpec(*entries)


def param_shardings(specs: Any, mesh: Mesh, whole: tuple[str, ...] = ()) -> Any:
  """Places every parameter of a model on a mesh.

  Args:
    specs: a tree whose leaves have `axes` and `shape`, as `ModelConfig.param_specs`.
    mesh: a mesh from `make_mesh`.
    whole: mesh axes over which no parameter is split.

  Returns:
    The same tree of NamedSharding.

  Raises:
    ValueError: a dimension does not divide by its mesh axes.
  """
  return jax.tree.map(
    lambda spec: NamedSharding(
      mesh, partition_spec(spec.axes, spec.shape, mesh, whole)
    ),
    specs,
  )


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Pins `x` to its logical `axes` under `jax.set_mesh` (see `Program`).

  Without this the partitioner may follow the parameters' sharding and split the
  residual stream over `embed`, so that every device computes every row.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(AXES) <= set(mesh.axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))
