"""Wild tables of rows in groups, for tests of group statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

EPS = 1e-6
ROWS = 12

row = st.tuples(
  st.sampled_from([0, 7, -3]),  # Group.
  st.integers(0, 2),  # Trajectory within the group.
  st.sampled_from([0.0, -0.1, 10.0, 9.9, 0.3]),  # Score.
  st.integers(0, 2),  # Anchor.
  st.booleans(),  # A real row.
)
tables = st.lists(row, min_size=ROWS, max_size=ROWS)


def columns(table):
  groups, members, scores, anchors, mask = map(np.array, zip(*table))
  trajectories = groups * 10 + members
  return groups, trajectories, scores.astype(float), anchors, mask


def on_device(function, *arrays, **settings):
  with jax.enable_x64(True):
    jitted = jax.jit(lambda *arrays: function(*arrays, **settings))
    return np.asarray(jitted(*map(jnp.asarray, arrays)))
