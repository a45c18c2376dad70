"""Pages that a process pays for once, not at every run of a program."""

import os
import subprocess
import sys

import pytest

from sdar_jax.process import memory

# Blocks that glibc would map: 64 MiB each, filled and freed again and again.
_WORK = """
import resource
import numpy as np
from sdar_jax.process import memory
kept = {keep} and memory.keep()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = faults()
for _ in range(20):
  np.ones(2**23)
print(int(kept), faults() - before)
"""


def _faults(keep, **variables):
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', **variables}
  command = [sys.executable, '-c', _WORK.format(keep=keep)]
  done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
  return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != 'linux', reason="glibc's")
def test_what_is_freed_is_used_again():
  (_, paid), (kept, once) = _faults(False), _faults(True)
  assert kept and once < 100
  # 64 MiB are 32 pages at least, were they of 2 MiB.
  assert paid >= 20 * 32 > once


@pytest.mark.parametrize(
  'variables',
  [
    {'MALLOC_ARENA_MAX': '4'},
    {'GLIBC_TUNABLES': 'glibc.malloc.trim_threshold=1'},
    {'JAX_PLATFORMS': 'cuda,cpu'},
  ],
)
def test_who_has_set_it_keeps_it(variables):
  assert _faults(True, **variables)[0] == 0


def test_beside_an_accelerator_nothing_is_done(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  (tmp_path / 'dev').mkdir()
  (tmp_path / 'dev/accel0').touch()
  monkeypatch.setenv('PATH', '')
  assert not memory.keep(tmp_path)
