"""Arrays that the objective reads, for a minibatch or a part of one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdar_jax.losses import distill, masked
from sdar_jax.losses.masked import Array
from sdar_jax.methods import gates


class LossInputs(NamedTuple):
  """Inputs of the objective; gradients reach the first four fields only.

  Attributes:
    logprobs: [B, T] float, nats, of the current policy.
    entropy: [B, T] float, nats, of the current policy.
    values: [B, T] float, return units, of the current critic, or None.
    divergence: [B, T] float, nats, between the student's and the teacher's whole
      distributions, or None.
    old_logprobs: [B, T] float, nats, before this step's updates.
    ref_logprobs: [B, T] float, nats, or None where `needs_reference` is False.
    teacher_logprobs: [B, T] float, nats, or None where `needs_teacher` is False.
    contrast_logprobs: [B, T] float, nats, under the teacher's second context, or None.
    old_values: [B, T] float, return units, or None.
    advantages: [B, T] float, one per token.
    value_targets: [B, T] float, return units, or None.
    response_mask: [B, T] bool, True exactly on sampled tokens; all False on padding
      rows.
    action_mask: [B, T] bool, tokens after the thought, or None.
    teaching: [B] float, weight of the row's distillation term; 0 where the teacher
      saw nothing.
    turn_ids: [B] int, which turn of its episode a row is, from 0.
    gate: [B, T] in [0, 1], the method's before this step's updates, or None where it
      has none; where the gate weighs a loss, the objective puts the current policy's
      in its place.
    gate_mean: scalar, the step's mean gate before its updates.
    distill_scale: scalar, the schedule's factor on distill_coef.
    normaliser: scalar, `masked.normaliser_of` the whole minibatch's response_mask.
  """

  logprobs: Array
  entropy: Array
  values: Array | None
  divergence: Array | None
  old_logprobs: Array
  ref_logprobs: Array | None
  teacher_logprobs: Array | None
  contrast_logprobs: Array | None
  old_values: Array | None
  advantages: Array
  value_targets: Array | None
  response_mask: Array
  action_mask: Array | None
  teaching: Array
  turn_ids: Array
  gate: Array | None
  gate_mean: Array | float
  distill_scale: Array | float
  normaliser: Array | int

  @property
  def taught_mask(self) -> Array:
    """Selects response tokens of taught rows, [B, T] bool."""
    return self.response_mask & (self.teaching != 0)[:, None]

  @property
  def gap(self) -> jax.Array:
    """Computes `distill.gap` of the current policy, [B, T] nats."""
    return distill.gap(self.logprobs, self.teacher_logprobs, self.taught_mask)

  @property
  def gate_inputs(self) -> gates.GateInputs:
    """Collects what a gate looks at, under the current policy; no gradient."""
    turns = jnp.broadcast_to(self.turn_ids[:, None], self.taught_mask.shape)
    known = (self.entropy, self.logprobs, self.teacher_logprobs, turns)
    known = jax.lax.stop_gradient(masked.fill(self.taught_mask, *known))
    return gates.GateInputs(self.gap, *known)
