"""A run that goes on with other devices goes on with the same numbers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_next_loss_on_another_mesh_is_the_same(tmp_path):
  """Run with `pytest -m slow tests/learner/test_resharding.py`: a CPU minute."""
  paths = os.pathsep.join(map(str, (HERE.parent, HERE)))
  done = subprocess.run(
    [sys.executable, str(HERE / 'reshard_worker.py'), str(tmp_path / 'checkpoints')],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': paths, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  losses = json.loads(done.stdout)
  whole = losses.pop('unbroken')
  assert abs(whole) > 1e-2 and len(losses) == 4
  assert losses.pop('(2, 2, 1)') == whole  # The same mesh: to the last bit.
  for shape, loss in losses.items():
    assert abs(loss - whole) < 1e-5 * abs(whole), (shape, loss, whole)
