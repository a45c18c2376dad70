"""Saves a run's state on one mesh and trains on with it on others.

See test_resharding.py. It runs on four host devices, in a process of its own.
"""

import os
import sys

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'
os.environ['JAX_PLATFORMS'] = 'cpu'

import json
import math

import jax
import micro
import numpy as np

from sdar_jax.learner import checkpoint
from sdar_jax.models import sharding

# (data, fsdp, tensor); the state is saved on the first.
MESHES = ((2, 2, 1), (1, 1, 1), (4, 1, 1), (1, 2, 2))
ROWS = [micro.minibatch(i) for i in (0, 1)]


def prepare(shape):
  """A learner on a mesh, and weights there to train and to compare with."""
  mesh = sharding.make_mesh(*shape, jax.devices()[: math.prod(shape)])
  random = np.random.default_rng(0)
  draw = lambda spec: random.normal(size=spec.shape).astype(np.float32) / 8
  trees = [jax.tree.map(draw, micro.MODEL.param_specs()) for _ in range(2)]
  placed = jax.device_put(
    trees, [sharding.param_shardings(micro.MODEL.param_specs(), mesh)] * 2
  )
  return micro.learner(mesh, teacher_weights='ema'), *placed


def update(learner, state, initial, rows, shape):
  """A pass of the loop; the state after it, and its loss."""
  sheets = micro.split(rows, lanes=shape[0] * shape[1])
  (scored,) = micro.scored(learner, state, initial, [sheets])
  state, metrics = learner.train_step(state, scored)
  return learner.finish_step(state), float(metrics['loss'][0])


def main(directory):
  learner, params, initial = prepare(MESHES[0])
  state, _ = update(learner, learner.init_state(params), initial, ROWS[0], MESHES[0])
  saved = jax.device_get(state)
  store = checkpoint.CheckpointStore(directory, 2)
  assert store.save(1, state, {})
  losses = {'unbroken': update(learner, state, initial, ROWS[1], MESHES[0])[1]}
  for shape in MESHES:
    learner, params, initial = prepare(shape)
    like = learner.init_state(params)
    restored = checkpoint.load(directory, like).state
    jax.tree.map(np.testing.assert_array_equal, saved, jax.device_get(restored))
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like)):
      assert leaf.sharding == wanted.sharding
    losses[str(shape)] = update(learner, restored, initial, ROWS[1], shape)[1]
  print(json.dumps(losses))


if __name__ == '__main__':
  main(sys.argv[1])
