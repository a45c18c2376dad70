"""Weights drawn by numpy: `init_params` is compiled in every process."""

import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.models import attention


def weights(model, seed=0, noise=0.0):
  """Float32 parameters as `init_params` draws them; each call makes new arrays.

  `noise` is the deviation of what is added to all of them: to norms and biases, too.
  """
  random = np.random.default_rng(seed)
  known = {'scale': np.ones, 'bias': np.zeros}

  def draw(path, spec):
    make = known.get(path[-1].key)
    mean = (
      make(spec.shape) if make else random.normal(0, attention.INIT_STDDEV, spec.shape)
    )
    moved = mean + noise * random.normal(size=spec.shape)
    return jnp.array(moved.astype(np.float32))

  return jax.tree_util.tree_map_with_path(draw, model.param_specs())
