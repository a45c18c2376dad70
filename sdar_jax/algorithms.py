"""The table of methods: a method is one row of choices and nothing else.

A row names pure functions and constants; the loop, the learner and the rollout read
them and never ask which method runs. Numbers live in `LossConfig`, not here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdar_jax.losses import advantages as advantages_lib
from sdar_jax.losses import distill, masked, policy
from sdar_jax.losses.masked import Array

DISTILL_FORMS = ('loss', 'advantage')
GAP_TURNS = 50  # Bins of the gap by turn: the paper's longest episode.


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Hyperparameters of advantages and losses; hashable, so static under jit.

  Defaults are the paper's for ALFWorld (arXiv 2605.15155; ZJU-REAL/SDAR@8b85c23,
  examples/sdar_trainer). A coefficient of 0 removes its term: it costs nothing and
  the result is bit for bit that of a method without it.

  Attributes:
    clip_low: the ratio's lower clip is 1 - clip_low.
    clip_high: the ratio's upper clip is 1 + clip_high.
    dual_clip: bound on the ratio where the advantage is negative, >= 1.
    policy_coef: weight of the policy loss.
    kl_coef: weight of the KL to the initial policy.
    kl_kind: its estimator, one of policy.KL_KINDS.
    entropy_coef: weight of the entropy bonus.
    distill_coef: weight of the distillation term.
    distill_form: 'loss' adds the term; 'advantage' adds the gate to the advantages.
    gate_beta: sharpness of the gate, 1/nat.
    aggregation: tokens to a scalar, one of masked.AGGREGATIONS.
    statistics_over: group statistics over 'rows' or 'trajectories'.
    divide_by_std: divide group-relative advantages by the group's deviation.
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 3.0
  policy_coef: float = 1.0
  kl_coef: float = 0.01
  kl_kind: str = 'k3'
  entropy_coef: float = 0.001
  distill_coef: float = 0.01
  distill_form: str = 'loss'
  gate_beta: float = 5.0
  aggregation: str = 'token-mean'
  statistics_over: str = 'rows'
  divide_by_std: bool = True

  def __post_init__(self):
    choices = {
      'kl_kind': policy.KL_KINDS,
      'distill_form': DISTILL_FORMS,
      'aggregation': masked.AGGREGATIONS,
      'statistics_over': advantages_lib.STATISTICS_OVER,
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name}={getattr(self, name)!r}: expected one of {allowed}')
    least = {'clip_low': 0, 'clip_high': 0, 'gate_beta': 0, 'dual_clip': 1}
    least |= {f'{term}_coef': 0 for term in ('policy', 'kl', 'entropy', 'distill')}
    for name, bound in least.items():
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= bound):
        raise ValueError(f'{name}={value}: expected a finite number >= {bound}')
    if self.clip_low > 1:
      raise ValueError(f'clip_low={self.clip_low}: expected at most 1')

  @property
  def needs_reference(self) -> bool:
    """Whether the loss reads `ref_logprobs`."""
    return self.kl_coef != 0


class RowData(NamedTuple):
  """What an advantage estimator may read, one entry per row (numpy or JAX).

  Attributes:
    scores: [B] float, return units: the trajectory's return less row penalties.
    group_ids: [B] int.
    trajectory_ids: [B] int.
    row_mask: [B] bool, False for padding rows.
  """

  scores: Array
  group_ids: Array
  trajectory_ids: Array
  row_mask: Array


class LossInputs(NamedTuple):
  """What the objective may read; every field but the first two is a constant.

  Attributes:
    logprobs: [B, T] float, nats, of the current policy, with gradient.
    entropy: [B, T] float, nats, of the current policy, with gradient.
    old_logprobs: [B, T] float, nats, before this step's updates.
    ref_logprobs: [B, T] float, nats, or None where `needs_reference` is False.
    teacher_logprobs: [B, T] float, nats, or None where `needs_teacher` is False.
    advantages: [B] float, one per row.
    response_mask: [B, T] bool, True exactly on sampled tokens; all False on padding
      rows.
    turn_ids: [B] int, which turn of its episode a row is, from 0.
    normaliser: scalar, `masked.normaliser_of` the whole minibatch's response_mask.
  """

  logprobs: Array
  entropy: Array
  old_logprobs: Array
  ref_logprobs: Array | None
  teacher_logprobs: Array | None
  advantages: Array
  response_mask: Array
  turn_ids: Array
  normaliser: Array | int


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A distillation term in its two forms, and what to log about it.

  Attributes:
    losses: (inputs, hyper) -> [B, T] losses per token, before distill_coef.
    advantages: (advantages [B, T], inputs, hyper) -> [B, T] advantages, with
      distill_coef inside.
    metrics: (inputs, hyper) -> Metrics.
  """

  losses: Callable[[LossInputs, LossConfig], jax.Array]
  advantages: Callable[[jax.Array, LossInputs, LossConfig], jax.Array]
  metrics: Callable[[LossInputs, LossConfig], masked.Metrics]


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One method.

  Attributes:
    advantages: (rows, hyper) -> [B] advantages, one per row.
    token_credit: (inputs, hyper) -> [B, T] advantages, one per token.
    policy_loss: (inputs, token advantages, hyper) -> [B, T] losses per token.
    policy_metrics: (inputs, token advantages, hyper) -> Metrics.
    distillation: the term, or None.
    teacher_context: what the teacher's prompt shows beyond the student's: 'skills',
      or None where there is no teacher.
    student_sees_skills: whether the student's own prompt shows skills.
  """

  advantages: Callable[[RowData, LossConfig], Array]
  token_credit: Callable[[LossInputs, LossConfig], jax.Array]
  policy_loss: Callable[[LossInputs, jax.Array, LossConfig], jax.Array]
  policy_metrics: Callable[[LossInputs, jax.Array, LossConfig], masked.Metrics]
  distillation: Distillation | None
  teacher_context: str | None
  student_sees_skills: bool

  def needs_teacher(self, hyper: LossConfig) -> bool:
    """Whether the loss reads `teacher_logprobs` under these hyperparameters."""
    return self.distillation is not None and hyper.distill_coef != 0


def policy_objective(
  algorithm: Algorithm, hyper: LossConfig, inputs: LossInputs
) -> tuple[jax.Array, masked.Metrics]:
  r"""The scalar to minimise and its metrics, for a minibatch or a part of one.

  \[ L = c_{pg} L_{PG} - c_H H + c_{KL} L_{KL} + \lambda L_{distill} \]

  each an `aggregate` with the minibatch's normaliser: losses, gradients and metrics
  of disjoint parts of a minibatch add up to those of the whole.

  Args:
    algorithm: a row of `ALGORITHMS`.
    hyper: hyperparameters; its zero coefficients remove their terms.
    inputs: arrays; gradients reach `logprobs` and `entropy` only.

  Returns:
    The loss (scalar) and metrics, name -> (sum, count). Loss terms are reported per
    token and before their coefficient, whatever the aggregation.

  Source: SDAR (arXiv 2605.15155); verl/workers/actor/dp_actor.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  mask = inputs.response_mask
  credit = algorithm.token_credit(inputs, hyper)
  metrics = algorithm.policy_metrics(inputs, credit, hyper)
  metrics['entropy'] = masked.total(inputs.entropy, mask)
  terms = []
  policy_coef = hyper.policy_coef
  if algorithm.needs_teacher(hyper):
    metrics |= algorithm.distillation.metrics(inputs, hyper)
    if hyper.distill_form == 'advantage':
      # The surrogate is homogeneous in the advantages, so the coefficient may move
      # inside: with policy_coef 0 the gate is all the credit there is.
      credit = algorithm.distillation.advantages(policy_coef * credit, inputs, hyper)
      policy_coef = 1.0
    else:
      losses = algorithm.distillation.losses(inputs, hyper)
      metrics['distill_loss'] = masked.total(losses, mask)
      terms.append((hyper.distill_coef, losses))
  if policy_coef != 0:
    losses = algorithm.policy_loss(inputs, credit, hyper)
    metrics['policy_loss'] = masked.total(losses, mask)
    terms.append((policy_coef, losses))
  if hyper.kl_coef != 0:
    losses = policy.kl_penalty(
      inputs.logprobs, inputs.ref_logprobs, mask, kind=hyper.kl_kind
    )
    metrics['kl'] = masked.total(losses, mask)
    terms.append((hyper.kl_coef, losses))
  if hyper.entropy_coef != 0:
    terms.append((hyper.entropy_coef, policy.entropy_loss(inputs.entropy, mask)))
  loss = jnp.zeros((), inputs.logprobs.dtype)
  for coef, losses in terms:
    loss += coef * masked.aggregate(losses, mask, inputs.normaliser, hyper.aggregation)
  return loss, metrics


def _group_relative(rows: RowData, hyper: LossConfig) -> Array:
  return advantages_lib.group_relative(
    *rows, statistics_over=hyper.statistics_over, divide_by_std=hyper.divide_by_std
  )


def _uniform_credit(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return advantages_lib.uniform_credit(inputs.advantages, inputs.response_mask)


def _clips(hyper: LossConfig) -> dict[str, float]:
  names = ('clip_low', 'clip_high', 'dual_clip')
  return {name: getattr(hyper, name) for name in names}


def _clipped_surrogate(inputs: LossInputs, credit: jax.Array, hyper: LossConfig):
  return policy.clipped_surrogate(
    inputs.logprobs, inputs.old_logprobs, credit, inputs.response_mask, **_clips(hyper)
  )


def _surrogate_metrics(inputs: LossInputs, credit: jax.Array, hyper: LossConfig):
  return policy.surrogate_metrics(
    inputs.logprobs, inputs.old_logprobs, credit, inputs.response_mask, **_clips(hyper)
  )


def _gated_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return distill.gated_distillation(
    inputs.logprobs,
    inputs.teacher_logprobs,
    inputs.response_mask,
    gate_beta=hyper.gate_beta,
  )


def _gated_advantages(credit: jax.Array, inputs: LossInputs, hyper: LossConfig):
  # Advantages are estimated before the step's updates, so this gap is the old one's.
  mask = inputs.response_mask
  gap = distill.gap(inputs.old_logprobs, inputs.teacher_logprobs, mask)
  gate = distill.gate(gap, hyper.gate_beta)
  return distill.gate_advantages(credit, gate, mask, distill_coef=hyper.distill_coef)


def _gate_metrics(inputs: LossInputs, hyper: LossConfig) -> masked.Metrics:
  mask = inputs.response_mask
  gap = distill.gap(inputs.logprobs, inputs.teacher_logprobs, mask)
  gate = distill.gate(gap, hyper.gate_beta)
  metrics = distill.gate_metrics(gap, gate, mask, distill_coef=hyper.distill_coef)
  by_turn = distill.gap_by_turn(gap, mask, inputs.turn_ids, num_turns=GAP_TURNS)
  return metrics | {'gap_by_turn': by_turn}


GRPO = Algorithm(
  advantages=_group_relative,
  token_credit=_uniform_credit,
  policy_loss=_clipped_surrogate,
  policy_metrics=_surrogate_metrics,
  distillation=None,
  teacher_context=None,
  student_sees_skills=False,
)
SDAR = dataclasses.replace(
  GRPO,
  distillation=Distillation(
    losses=_gated_losses, advantages=_gated_advantages, metrics=_gate_metrics
  ),
  teacher_context='skills',
)

ALGORITHMS = {'grpo': GRPO, 'sdar': SDAR}
