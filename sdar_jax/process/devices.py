"""Names the devices of a program and those it misses. No JAX."""

import collections
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

_GIB = 2**30
_NAMES = {'gpu': 'an NVIDIA GPU', 'tpu': 'a TPU'}
# Vendor and devices on the PCI bus, as JAX lists them: v2 and v3, v4, v5p, v5e, v6e,
# 7x. Google makes network cards, too.
_GOOGLE = '0x1ae0'
_TPUS = {'0x0027', '0x0056', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076'}


def summary(devices: Sequence[Any]) -> str:
  """Names what JAX found: 'devices: 8 x TPU v5e (tpu), 15.7 GiB each'.

  Args:
    devices: of JAX.
  """
  counts = collections.Counter((d.platform, d.device_kind) for d in devices)
  parts = []
  for (platform, kind), count in counts.items():
    name = platform if kind == platform else f'{kind} ({platform})'
    parts.append(f'{count} x {name}')
  where = ', '.join(parts)
  memory = _memory(devices[0])
  if memory:
    where += f', {memory / _GIB:.1f} GiB' + (' each' if len(devices) > 1 else '')
  if devices[0].platform == 'cpu':
    where += f', {_cores()} cores'
  return f'devices: {where}'


def _memory(device: Any) -> int:
  """Reads the bytes that JAX may use on a device; 0: unknown."""
  try:
    return (device.memory_stats() or {}).get('bytes_limit', 0)
  except RuntimeError:  # Another process's, or a platform without statistics.
    return 0


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def warning(devices: Sequence[Any], root: pathlib.Path = pathlib.Path('/')) -> str:
  """Names an accelerator that JAX does not use; '' for none.

  Args:
    devices: of JAX.
    root: of the file system.
  """
  if devices[0].platform != 'cpu' or os.environ.get('JAX_PLATFORMS'):
    return ''  # It uses one, or was told what to use.
  extra = accelerator(root)
  if not extra:
    return ''
  return (
    f'warning: {_NAMES[extra]} is here that JAX cannot use: pip install'
    f" 'sdar-jax[{extra}]', or JAX_PLATFORMS=cpu if that is meant"
  )


def accelerator(root: pathlib.Path = pathlib.Path('/')) -> str:
  """Finds what this machine has, whether JAX can use it or not.

  Args:
    root: of the file system.

  Returns:
    'gpu', 'tpu', or '' for neither.
  """
  return 'gpu' if _has_gpu(root) else 'tpu' if _has_tpu(root) else ''


def _has_gpu(root: pathlib.Path) -> bool:
  return (root / 'dev/nvidia0').exists() or shutil.which('nvidia-smi') is not None


def _has_tpu(root: pathlib.Path) -> bool:
  if (root / 'dev/accel0').exists():
    return True
  cards = (root / 'sys/bus/pci/devices').glob('*')
  return any(
    _text(card / 'vendor') == _GOOGLE and _text(card / 'device') in _TPUS
    for card in cards
  )


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text().strip()
  except OSError:
    return ''
