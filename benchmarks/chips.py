"""Devices of machines that are not here, for compiling.

XLA's compilers for TPU and CUDA run without their hardware: a topology stands in for
the devices. TPU wants libtpu, CUDA jax-cuda12-plugin and jax-cuda12-pjrt of jax's own
version, all installed with `--no-deps`; neither needs a driver.
"""

import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# From NVIDIA's data sheet of the H100 SXM (80 GB, HBM3), in the format of XLA's target
# descriptions.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# What JAX may use of an H100's 79.1 GiB with XLA_PYTHON_CLIENT_MEM_FRACTION=.95.
_H100_GIB, _V5E_GIB = 75.2, 15.75
_HOST = 8  # GPUs of one machine.
_SQUARES = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8'}


class Chips(NamedTuple):
  """Devices to compile for, and the GiB that a program may use of each."""

  devices: Sequence[Any]
  memory: float


def find(name: str, count: int) -> Chips:
  """Finds `count` devices of a kind: 'h100', 'v5e', or 'cpu' of this machine.

  Raises:
    ValueError: one line naming what there is, or what to install.
  """
  if name != 'cpu':  # What the compilers ask of the machine, and its own devices.
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1'}
  import jax

  if name == 'cpu':
    return Chips(jax.devices('cpu')[:count], math.inf)
  if name == 'h100':
    return Chips(_cuda(count), _H100_GIB)
  if name == 'v5e' and count in _SQUARES:
    return Chips(_tpu(count), _V5E_GIB)
  raise ValueError(
    f'--chip={name} with {count} devices: must be cpu, h100 or, with'
    f' {", ".join(map(str, _SQUARES))} of them, v5e'
  )


def _tpu(count: int) -> Sequence[Any]:
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # There is no server to ask.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_WORKER_ID', '0')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  one = {'chips_per_host_bounds': [1, 1, 1]} if count == 1 else {}
  return _topology(
    'tpu', f'v5e:{_SQUARES[count]}', 'pip install --no-deps libtpu', **one
  )


def _cuda(count: int) -> Sequence[Any]:
  import jax

  # It asks the machine's own cuDNN and GPU, which are not those compiled for.
  from jax._src.cudnn import fused_attention_stablehlo as asks

  asks.check_cudnn_version = lambda: 91000
  asks.check_compute_capability = lambda wanted: True
  hosts, each = max(1, count // _HOST), min(count, _HOST)
  install = f'pip install --no-deps jax-cuda12-{{plugin,pjrt}}=={jax.__version__}'
  shape = f'1x{hosts}x{each}'
  return _topology('cuda', '', install, target_config=_H100, topology=shape)


def _topology(platform: str, name: str, install: str, **options: Any) -> Sequence[Any]:
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(
      platform=platform, topology_name=name, **options
    ).devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    why = re.sub(r'\s+', ' ', str(error))[:200]
    raise ValueError(
      f'XLA cannot compile for {platform} here: {why}; {install}'
    ) from None
