"""The critic: a head on the policy's trunk, and its values of tokens."""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.models import decoder


def init_value_head(config: decoder.ModelConfig) -> dict[str, jax.Array]:
  """Makes a value head of zeros: `kernel` [D] f32 and `bias` [] f32."""
  return {'kernel': jnp.zeros(config.hidden_size), 'bias': jnp.zeros(())}


def token_values(states: jax.Array, value_head: dict[str, jax.Array]) -> jax.Array:
  """Estimates values from states of the policy's trunk.

  values[b,n] = states[b,n] . kernel + bias

  Args:
    states: [B, N, D], each of the token before the one that is valued.
    value_head: `kernel` [D] and `bias` [], f32, of `init_value_head` or trained.

  Returns:
    [B, N] f32, return units.

  Source: PPO (arXiv 1707.06347) sec. 5, a value function that shares the policy's
    parameters.
  """
  chex.assert_shape(value_head['kernel'], states.shape[-1:])
  # Not a matmul: accelerators would round its float32 inputs to half precision.
  products = states.astype(jnp.float32) * value_head['kernel']
  return products.sum(-1) + value_head['bias']
