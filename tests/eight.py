"""Programs with eight devices on one CPU, in a process of their own."""

import pathlib
import subprocess
import sys

import quick

HERE = pathlib.Path(__file__).resolve().parent
# The programs compare meshes up to rounding, which slow code has as well as fast code:
# half of their time was LLVM's, over what runs once.
FLAGS = (
  '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  f' {quick.FLAGS}'
)


def run(name: str, *arguments: str) -> str:
  """Runs a Python file of this folder; returns what it prints."""
  done = subprocess.run(
    [sys.executable, str(HERE / name), *arguments],
    capture_output=True,
    text=True,
    timeout=800,
    env={
      'PYTHONPATH': f'{HERE.parent}:{HERE}',
      'PATH': '/usr/bin:/bin',
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': FLAGS,
    },
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  return done.stdout
