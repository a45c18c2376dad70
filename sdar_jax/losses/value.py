"""The critic's loss."""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array


def value_loss(
  values: Array, old_values: Array, targets: Array, mask: Array, *, value_clip: float
) -> jax.Array:
  """Clips PPO's value loss per token.

    ½ · max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²)

  Args:
    values: [B, T] float, return units; the only input with a gradient.
    old_values: [B, T] float, return units, before this step's updates.
    targets: [B, T] float, return units: R of `advantages.returns.gae`.
    value_clip: ε, return units (0.5 in the reference).

  Returns:
    [B, T] squared return units, to be minimised; 0 where masked.

  Source: Schulman et al. 2017 (arXiv 1707.06347), its public baselines;
    verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([values, old_values, targets], 2)
  values, old_values, targets = masked.fill(mask, values, old_values, targets)
  old_values, targets = jax.lax.stop_gradient((old_values, targets))
  near = jnp.clip(values, old_values - value_clip, old_values + value_clip)
  plain, clipped = jnp.square(values - targets), jnp.square(near - targets)
  return 0.5 * jnp.where(clipped > plain, clipped, plain)
