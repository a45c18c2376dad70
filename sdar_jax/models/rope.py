"""Scales rotary frequencies for contexts longer than in training."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Hyperparameters of the kind 'llama3', Llama 3.1's; hashable.

  Attributes:
    factor: what the lowest frequencies are divided by.
    low_freq_factor: turns within the original context up to which they are.
    high_freq_factor: turns within it from which a frequency is kept.
    original_max_position_embeddings: positions of the original context.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int

  def __post_init__(self):
    if not 1 <= self.factor < math.inf:
      raise ValueError(f'rope scaling factor {self.factor}: must be at least 1')
    if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
      raise ValueError(
        f'rope scaling low_freq_factor {self.low_freq_factor}: must be positive and'
        f' below high_freq_factor {self.high_freq_factor}'
      )
    if self.original_max_position_embeddings < 1:
      raise ValueError(
        'rope scaling original_max_position_embeddings'
        f' {self.original_max_position_embeddings}: must be at least 1'
      )


def scale(frequencies: jax.Array, scaling: Scaling | None) -> jax.Array:
  """Lowers the low rotary frequencies; the high ones are kept.

  out = f (s + (1 - s) / factor);  s = clip((n - low) / (high - low), 0, 1);
  n = f * original_max_position_embeddings / (2 pi), turns in the original context

  Args:
    frequencies: [H/2] f32, radians per position.
    scaling: its numbers; None changes nothing.

  Returns:
    [H/2] f32.

  Source: meta-llama/llama-models, `apply_scaling` of Llama 3.1.
  """
  if scaling is None:
    return frequencies
  turns = frequencies * (scaling.original_max_position_embeddings / (2 * math.pi))
  width = scaling.high_freq_factor - scaling.low_freq_factor
  kept = jnp.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
  return frequencies * (kept + (1 - kept) / scaling.factor)
