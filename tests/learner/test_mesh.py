"""Eight devices compute what one does, in a process of its own."""

import eight


def test_meshes_equal_one_device():
  assert 'worst relative error' in eight.run('mesh_worker.py')
