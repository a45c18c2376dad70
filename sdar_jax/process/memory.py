"""Keeps what a process frees for what it asks for next. No JAX."""

import ctypes
import os
import pathlib
import sys

from sdar_jax.process import devices

# Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1  # Bytes: the largest that mallopt takes.


def keep(root: pathlib.Path = pathlib.Path('/')) -> bool:
  """Keeps freed memory in this process, where JAX runs on CPUs.

  XLA for CPU takes the temporaries of a program anew each time that it runs. glibc maps
  every block of more than 32 MiB and gives it back, so that each run pays for its pages
  again: a fifth of a step of the small models. With one arena, nothing mapped and
  nothing trimmed below 2 GiB the pages stay; no number changes. To be called before
  JAX's threads begin, which have arenas of their own afterwards.

  Nothing is done where an accelerator is used or the variables of glibc's malloc are
  set, nor with another C library.

  Args:
    root: of the file system.

  Returns:
    Whether anything was done.

  Source: mallopt(3).
  """
  told = [name for name in os.environ if name.startswith('MALLOC_')]
  told += ['malloc'] * ('glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''))
  platforms = os.environ.get('JAX_PLATFORMS') or devices.accelerator(root) or 'cpu'
  if told or platforms != 'cpu' or sys.platform != 'linux':
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  wanted = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST))
  return all([mallopt(name, value) == 1 for name, value in wanted])
