"""Terms of the objective of other methods than GRPO and SDAR, by name.

Losses per token, and their metrics. Rows of `methods.table` name these functions with
the numbers that each reads.
"""

import math

import jax
import jax.numpy as jnp

from sdar_jax.losses import (
  distill,
  influence,
  masked,
  sequence,
  two_views,
  variants,
  views,
)
from sdar_jax.losses.objective import LossInputs, surrogate
from sdar_jax.methods.hyperparameters import Hyperparameters

_RESPONSE_CLIPS = ('clip_low', 'clip_high')


def sequence_surrogate(
  inputs: LossInputs, advantages: jax.Array, hyper: Hyperparameters
) -> jax.Array:
  """Computes GSPO's surrogate of whole responses, [B, T]."""
  return surrogate(sequence.gspo, inputs, advantages, hyper, _RESPONSE_CLIPS)


def sequence_metrics(
  inputs: LossInputs, advantages: jax.Array, hyper: Hyperparameters
) -> masked.Metrics:
  """Measures ratios and clips of whole responses."""
  return surrogate(sequence.gspo_metrics, inputs, advantages, hyper, _RESPONSE_CLIPS)


def gated_advantages(
  advantages: jax.Array, inputs: LossInputs, hyper: Hyperparameters, coef: jax.Array
) -> jax.Array:
  """Adds the gate, times `coef`, to the advantages, [B, T]."""
  mask, gate = inputs.taught_mask, inputs.gate
  if hyper.gate_centred:
    gate = variants.centred(gate, mask, inputs.gate_mean)
  gate = jnp.where(mask, gate, 0.0) * inputs.teaching[:, None]
  return variants.gate_advantages(
    advantages, gate, inputs.response_mask, distill_coef=coef
  )


def divergence(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Takes the divergence of whole distributions where taught, [B, T] nats."""
  return jnp.where(inputs.taught_mask, inputs.divergence, 0.0)


def sampled_gap(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Computes OPSD's term on sampled tokens, [B, T] nats."""
  return variants.opsd(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.taught_mask,
    gap_clip=hyper.gap_clip or math.inf,
  )


def influential(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Computes ICSD's term, SDAR's with weights by influence, [B, T] nats."""
  mask = inputs.taught_mask
  weights = influence.influence_weights(
    inputs.gate,
    inputs.gap,
    inputs.advantages,
    inputs.logprobs,
    inputs.old_logprobs,
    mask,
  )
  return distill.weighted(inputs.logprobs, inputs.teacher_logprobs, weights, mask)


def adaptive_views(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Computes AVSD's term on sampled tokens, [B, T] nats."""
  return views.adaptive_views(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.contrast_logprobs,
    inputs.taught_mask,
    gap_clip=hyper.gap_clip or math.inf,
  )


def k3(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Computes Skill-SD's weighted k3 to the teacher, [B, T] nats."""
  return variants.skill_sd(
    inputs.logprobs, inputs.old_logprobs, inputs.teacher_logprobs, inputs.taught_mask
  )


def two_view(inputs: LossInputs, hyper: Hyperparameters) -> jax.Array:
  """Computes UCOB's term from the better view to the worse, [B, T] nats."""
  plain = inputs.action_mask is None  # Where action_weight is 1, every token is alike.
  return two_views.two_view_distillation(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.gate,
    inputs.response_mask if plain else inputs.action_mask,
    inputs.taught_mask,
    action_weight=hyper.action_weight,
  )
