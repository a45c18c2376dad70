"""Eight devices compute what one does, in a process of its own."""

import eight
import pytest


@pytest.mark.long
def test_a_mesh_of_all_axes_equals_one_device():
  assert 'worst relative error' in eight.run('mesh_worker.py', 'one')


@pytest.mark.slow
def test_other_meshes_equal_one_device():
  """Run with `pytest -m slow tests/learner/test_mesh.py`: a minute of CPU."""
  assert 'worst relative error' in eight.run('mesh_worker.py', 'others')
