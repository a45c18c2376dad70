"""Muon, which imitation may train with in the place of Adam."""

import jax
import optax

from sdar_jax.learner import optimizer


def make_muon(*, weight_decay: float, max_grad_norm: float):
  """Chains clip and Muon on the blocks' matrices, Adam on the rest.

  Source: K. Jordan et al., Muon (2024), as optax.contrib.muon implements it.
  """

  def dimensions(params):
    spec = optax.contrib.MuonDimensionNumbers

    def one(path, leaf):
      in_block = any('layers' in str(part) for part in path)
      return spec(1, 2) if in_block and leaf.ndim == 3 else None

    return jax.tree_util.tree_map_with_path(one, params)

  return optax.chain(
    optimizer.clip(max_grad_norm),
    optax.contrib.muon(
      learning_rate=1.0,
      weight_decay=weight_decay,
      adam_weight_decay=weight_decay,
      muon_weight_dimension_numbers=dimensions,
      consistent_rms=0.2,
    ),
  )
