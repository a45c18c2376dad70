"""States to save and stores to damage, for the tests of checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdar_jax.learner.checkpoint import CheckpointStore


def state(seed, size=40):
  random_ = np.random.default_rng(seed)
  params = {
    'layers': {'kernel': jnp.asarray(random_.normal(size=(size, 25)), jnp.float32)},
    'bias': jnp.asarray(random_.normal(size=7), jnp.bfloat16),
  }
  return {
    'params': params,
    'opt_state': optax.adamw(1e-3).init(params),
    'step': jnp.int32(seed),
    'key': jax.random.key_data(jax.random.key(seed)),
  }


def host(step):
  state = np.random.default_rng(step).bit_generator.state
  return {'cursor': step, 'numpy': state, 'rate': 0.1 + step, 'none': None}


def same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    assert a.dtype == b.dtype and a.sharding == b.sharding
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def check(restored, step):
  assert restored.step == step
  same(restored.state, state(step))
  assert restored.host == host(step)


def fill(directory, steps, keep=2):
  store = CheckpointStore(directory, keep)
  assert store.restore(state(0)) is None
  for step in steps:
    assert store.save(step, state(step), host(step))
  return store


def names(directory):
  return sorted(path.name for path in directory.iterdir())
