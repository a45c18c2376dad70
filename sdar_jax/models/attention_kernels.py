"""Kernels for attention of whole rows: cuDNN's on GPU, splash on TPU.

Both are causal by index and know nothing of positions or padding. Rows are padded on
the right, so that is right: index order is position order, a real token sees only what
stands before it, and what padding itself computes nobody reads.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sdar_jax.models import sharding

LANES = 128  # Splash takes rows in multiples of it.
_BLOCKS = (512, 256, 128)
_LEAST_CAPABILITY = 8.0  # Of a GPU, for cuDNN's fused attention: Ampere.
_WIDEST_HEAD = 128  # Before Hopper.
NEEDED_PLATFORM = {'cudnn': 'gpu', 'splash': 'tpu'}


def check_platform(back_end: str, platform: str) -> None:
  """Raises ValueError where a back end is not for the devices."""
  needed = NEEDED_PLATFORM.get(back_end, platform)
  if platform != needed:
    raise ValueError(
      f'config.model.attention={back_end!r} is for {needed}, the devices are'
      f" {platform}: set it to 'auto'"
    )


def platform() -> str:
  """Names where the program will run: 'cpu', 'gpu' or 'tpu'.

  The devices of the mesh in force decide, which need not be this machine's.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend()
  kind = device.device_kind.lower()
  return 'tpu' if kind.startswith('tpu') else 'cpu' if kind == 'cpu' else 'gpu'


def fitting(width: int, dtype: jnp.dtype) -> str | None:
  """Names the kernel of the platform for heads of `width`, or None."""
  where = platform()
  if where == 'tpu' and width % 64 == 0:
    return 'splash'
  if where == 'gpu' and width % 8 == 0 and width <= _WIDEST_HEAD:
    return 'cudnn' if jnp.dtype(dtype).itemsize == 2 and _is_recent() else None
  return None


def _is_recent() -> bool:
  """Whether this machine's GPUs, if any, have fused attention."""
  here = jax.local_devices() if jax.default_backend() == 'gpu' else []
  return all(float(gpu.compute_capability) >= _LEAST_CAPABILITY for gpu in here)


def cudnn(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
  """Causal attention by cuDNN; see `attention.attend`.

  Args:
    query: [B, T, N, H], 16-bit.
    keys: [B, K, H, T].
    values: [B, K, T, H].

  Returns:
    [B, T, N, H] in the dtype of `query`.
  """
  keys, values = keys.transpose(0, 3, 1, 2), values.transpose(0, 2, 1, 3)
  # The three must be split alike, which the partitioner does not do by itself.
  placed = [
    sharding.constrain(array, ('batch', None, 'heads', None))
    for array in (query, _spread(keys, 2), _spread(values, 2))
  ]
  return jax.nn.dot_product_attention(*placed, is_causal=True, implementation='cudnn')


def splash(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
  """Causal attention by the splash kernel; see `attention.attend`.

  Elsewhere than on TPU the kernel is interpreted: right, and very slow.

  Args:
    query: [B, T, N, H].
    keys: [B, K, H, T].
    values: [B, K, T, H].

  Returns:
    [B, T, N, H] in the dtype of `query`.
  """
  length, width = query.shape[1], query.shape[-1]
  # What is padded stands after every real key: no real query sees it.
  pad = functools.partial(
    jnp.pad, pad_width=((0, 0), (0, 0), (0, -length % LANES), (0, 0))
  )
  query = (query * width**-0.5).transpose(0, 2, 1, 3)
  keys = keys.transpose(0, 1, 3, 2)
  inputs = [pad(query), pad(_spread(keys, 1)), pad(_spread(values, 1))]
  mixed = _on_each_device(_splash_rows)(*inputs)
  return mixed[:, :, :length].transpose(0, 2, 1, 3)


def _splash_rows(query, keys, values):
  """Runs the kernel on the rows and heads of one device."""
  # Imported where it is used: it takes as long as the whole model.
  from jax.experimental.pallas.ops.tpu import splash_attention

  heads, length = query.shape[1:3]
  block = next(size for size in _BLOCKS if length % size == 0)
  names = ('block_q', 'block_kv', 'block_q_dkv', 'block_kv_dkv')
  names += ('block_q_dq', 'block_kv_dq')
  mask = splash_attention.CausalMask((length, length))
  kernel = splash_attention.make_splash_mha(
    mask=splash_attention.MultiHeadMask([mask] * heads),
    block_sizes=splash_attention.BlockSizes(**dict.fromkeys(names, block)),
    head_shards=1,
    q_seq_shards=1,
    interpret=platform() != 'tpu',
  )
  return jax.vmap(kernel)(query, keys, values)


def _on_each_device(function):
  """Splits rows and heads, axes 0 and 1, over the mesh in force."""
  if _ways() is None:
    return function
  spec = PartitionSpec(sharding.RULES.batch, sharding.RULES.heads)
  # The kernel's outputs do not say over which axes they vary.
  return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)


def _ways() -> int | None:
  """Ways that heads are split by the mesh in force; None without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else mesh.shape[sharding.RULES.heads]


def _spread(array: jax.Array, axis: int) -> jax.Array:
  """Repeats key heads, no more than the mesh needs to divide them."""
  count = array.shape[axis]
  times = math.lcm(count, _ways() or 1) // count
  return jnp.repeat(array, times, axis=axis) if times > 1 else array
