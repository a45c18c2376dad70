"""Eight devices compute what one does, in a process of its own."""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parents[1]


def test_meshes_equal_one_device():
  done = subprocess.run(
    [sys.executable, str(HERE / 'mesh_worker.py')],
    capture_output=True,
    text=True,
    timeout=800,
    env={'PYTHONPATH': f'{HERE.parent}:{HERE}', 'PATH': '/usr/bin:/bin'},
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  assert 'worst relative error' in done.stdout
