"""What a method is made of, and the two places where its parts meet.

`assign_credit` runs on the host over a whole step, after scoring and before the first
update: advantages of every token. `policy_objective` runs jitted on the device: the
scalar of a minibatch. Both read a row of the table in `algorithms` and never ask which
method it is. Numbers live in `LossConfig`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.hyperparameters import LossConfig
from sdar_jax.losses import anchors, masked, policy, returns, schedules
from sdar_jax.losses.advantages import uniform_credit
from sdar_jax.losses.masked import Array

SEEING = ('none', 'all', 'half')  # Whose own prompts show skills.
# Members that a group must have for its teachers to see other episodes of the task.
_MEMBERS = {'sibling': 2, 'contrast': 3}


class StepData(NamedTuple):
  """A step's rows (one per turn) as credit assignment reads them. NumPy.

  Attributes:
    scores: [B] float, return units: the trajectory's return less the row's penalty.
    rewards: [B] float, return units, what the environment paid for the turn.
    penalties: [B] float, return units, >= 0, for a malformed turn.
    successes: [B] bool, whether the row's trajectory solved its task.
    group_ids: [B] int.
    trajectory_ids: [B] int, unique in the step.
    turn_ids: [B] int, from 0.
    row_mask: [B] bool.
    observations: [B] strings, what the environment showed.
    sees_skills: [B] bool, whether the student's own prompt showed skills.
    taught: [B] bool, whether the teacher's prompt showed anything; None without one.
    response_mask: [B, R] bool; responses are left-aligned.
    old_logprobs: [B, R] float, nats, before this step's updates.
    ref_logprobs: [B, R] float, nats, or None.
    teacher_logprobs: [B, R] float, nats, or None.
    old_entropy: [B, R] float, nats, or None.
    old_kl: [B, R] float, nats, to the initial policy as kl_kind says, or None.
    old_values: [B, R] float, return units, the critic's, or None.
    action_mask: [B, R] bool, tokens after the thought, or None.
    step: passes of the loop before this one.
  """

  scores: np.ndarray
  rewards: np.ndarray
  penalties: np.ndarray
  successes: np.ndarray
  group_ids: np.ndarray
  trajectory_ids: np.ndarray
  turn_ids: np.ndarray
  row_mask: np.ndarray
  observations: Sequence[str]
  sees_skills: np.ndarray
  taught: np.ndarray | None
  response_mask: np.ndarray
  old_logprobs: np.ndarray
  ref_logprobs: np.ndarray | None
  teacher_logprobs: np.ndarray | None
  old_entropy: np.ndarray | None
  old_kl: np.ndarray | None
  old_values: np.ndarray | None
  action_mask: np.ndarray | None
  step: int

  @property
  def gap(self) -> np.ndarray:
    """[B, R] nats, teacher minus pre-update policy; 0 where nothing was taught."""
    there = self.response_mask & self.taught[:, None]
    return np.where(there, self.teacher_logprobs - self.old_logprobs, 0.0)

  def discounted(self, gamma: float) -> np.ndarray:
    """[B] return units, `returns.step_returns`: rewards from each turn on."""
    return returns.step_returns(
      self.rewards, self.trajectory_ids, self.turn_ids, self.row_mask, gamma=gamma
    )

  def anchor_ids(self, similarity: float) -> np.ndarray:
    """[B] numbers of the states that a group's rows share; 0 asks for equal texts."""
    return anchors.anchor_ids(
      self.observations, self.group_ids, similarity=similarity or None
    )


class LossInputs(NamedTuple):
  """What the objective may read; gradients reach the first four fields only.

  Attributes:
    logprobs: [B, T] float, nats, of the current policy.
    entropy: [B, T] float, nats, of the current policy.
    values: [B, T] float, return units, of the current critic, or None.
    divergence: [B, T] float, nats, between the student's and the teacher's whole
      distributions, or None.
    old_logprobs: [B, T] float, nats, before this step's updates.
    ref_logprobs: [B, T] float, nats, or None where `needs_reference` is False.
    teacher_logprobs: [B, T] float, nats, or None where `needs_teacher` is False.
    old_entropy: [B, T] float, nats, or None.
    old_values: [B, T] float, return units, or None.
    advantages: [B, T] float, one per token.
    value_targets: [B, T] float, return units, or None.
    response_mask: [B, T] bool, True exactly on sampled tokens; all False on padding
      rows.
    action_mask: [B, T] bool, tokens after the thought, or None.
    teaching: [B] float, weight of the row's distillation term; 0 where the teacher
      saw nothing.
    turn_ids: [B] int, which turn of its episode a row is, from 0.
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
  old_entropy: Array | None
  old_values: Array | None
  advantages: Array
  value_targets: Array | None
  response_mask: Array
  action_mask: Array | None
  teaching: Array
  turn_ids: Array
  gate_mean: Array | float
  distill_scale: Array | float
  normaliser: Array | int

  @property
  def taught_mask(self) -> Array:
    """[B, T] bool, response tokens of rows whose teacher saw something."""
    return self.response_mask & (self.teaching != 0)[:, None]


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The teacher's side of a method; it combines with any policy's side.

  Attributes:
    context: what the teacher's prompt shows beyond the student's: one of
      `contexts.CONTEXTS`.
    metrics: (inputs, hyper) -> Metrics.
    losses: (inputs, hyper) -> [B, T] losses per token before distill_coef, or None.
      Used where distill_form is 'loss'.
    advantages: (advantages [B, T], inputs, hyper, coef) -> [B, T] advantages, on the
      device. Used where distill_form is 'advantage'.
    credit: (advantages [B, R], data, hyper, coef) -> [B, R] advantages, on the host
      over the whole step; used in either form.
    weights: (data, hyper) -> [B] weights of the rows' terms, or None for 1 each.
    whole_distribution: `losses` reads `inputs.divergence`.
    settings: config values of this method, 'algorithm.distill_coef' -> 0.5.
  """

  context: str
  metrics: Callable[[LossInputs, LossConfig], masked.Metrics]
  losses: Callable[[LossInputs, LossConfig], jax.Array] | None = None
  advantages: Callable[..., jax.Array] | None = None
  credit: Callable[..., np.ndarray] | None = None
  weights: Callable[[StepData, LossConfig], np.ndarray] | None = None
  whole_distribution: bool = False
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One method: a row of `algorithms.ALGORITHMS`.

  Attributes:
    summary: what it is, in a few words.
    source: the paper, and where it was read.
    advantages: (data, hyper) -> [B] or [B, R] advantages.
    policy_loss: (inputs, advantages [B, T], hyper) -> [B, T] losses per token.
    policy_metrics: (inputs, advantages [B, T], hyper) -> Metrics.
    value_targets: (data, hyper) -> [B, R] what the critic should have said; None for a
      method without critic.
    distillation: the teacher's side, or None.
    student_sees_skills: whose own prompts show skills: 'none', 'all' or 'half' of a
      group's members.
    settings: config values of the policy's side, 'algorithm.clip_high' -> 0.28.
    compares_members: whether the advantages are relative to a group's other members.
  """

  summary: str
  source: str
  advantages: Callable[[StepData, LossConfig], np.ndarray]
  policy_loss: Callable[[LossInputs, jax.Array, LossConfig], jax.Array]
  policy_metrics: Callable[[LossInputs, jax.Array, LossConfig], masked.Metrics]
  value_targets: Callable[[StepData, LossConfig], np.ndarray] | None = None
  distillation: Distillation | None = None
  student_sees_skills: str = 'none'
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  compares_members: bool = True

  @property
  def has_critic(self) -> bool:
    """Whether a value head is trained beside the policy."""
    return self.value_targets is not None

  @property
  def all_settings(self) -> dict[str, Any]:
    """Config values of both sides."""
    taught = self.distillation.settings if self.distillation else {}
    return {**self.settings, **taught}

  def needs_teacher(self, hyper: LossConfig) -> bool:
    """Whether anything reads `teacher_logprobs` under these hyperparameters."""
    return self.distillation is not None and hyper.distill_coef != 0

  def needs_divergence(self, hyper: LossConfig) -> bool:
    """Whether the loss reads whole distributions of a teacher."""
    return self.needs_teacher(hyper) and self.distillation.whole_distribution

  def least_group_size(self, hyper: LossConfig) -> int:
    """Members that a group must have for every part of the method to say something."""
    least = 2 if self.compares_members and hyper.policy_coef != 0 else 1
    if self.student_sees_skills == 'half':
      least = 2
    if self.needs_teacher(hyper) and self.distillation.context in _MEMBERS:
      least = max(least, _MEMBERS[self.distillation.context])
    return least

  def sees_skills(self, member: int) -> bool:
    """Whether this member of a group is shown skills."""
    odd = self.student_sees_skills == 'half' and member % 2 == 1
    return self.student_sees_skills == 'all' or odd


def assign_credit(
  algorithm: Algorithm, hyper: LossConfig, data: StepData
) -> dict[str, np.ndarray]:
  r"""What a step's rows are trained with, from their rewards and scores.

  \[ A_{it} = A_i \text{ or } A_{it}, \text{ then the teacher's credit} \]

  Args:
    algorithm: the method.
    hyper: its hyperparameters.
    data: the whole step, so that statistics and schedules see all of it.

  Returns:
    `advantages` [B, R] f32, `teaching` [B] f32, `gate_mean` and `distill_scale` [] f32,
    with a critic `value_targets` [B, R] f32, and `action_mask` if there is one; see
    `LossInputs`.

  Raises:
    ValueError: a reward that is not finite.
  """
  mask = data.response_mask
  if hyper.kl_in == 'reward' and hyper.kl_coef and not algorithm.has_critic:
    penalty = np.where(mask, data.old_kl, 0.0).sum(1)  # A critic's sees each token's.
    data = data._replace(scores=data.scores - hyper.kl_coef * penalty)
  advantages = np.asarray(algorithm.advantages(data, hyper), np.float32)
  if advantages.ndim == 1:
    advantages = uniform_credit(advantages, mask)
  scale = schedules.linear_warmdown(
    data.step, value=1.0, warmdown_steps=hyper.warmdown_steps
  )
  teaching, gate_mean = np.zeros(len(mask)), 0.0
  if algorithm.needs_teacher(hyper):
    distillation = algorithm.distillation
    teaching = data.taught.astype(float)
    if distillation.weights is not None:
      teaching = teaching * distillation.weights(data, hyper)
    if distillation.credit is not None:
      coef = hyper.distill_coef * float(scale)
      advantages = distillation.credit(advantages, data, hyper, coef)
    gates = old_gate(data, hyper)[mask & data.taught[:, None]]
    gate_mean = gates.mean() if gates.size else 0.0
  out = {
    'advantages': advantages,
    'teaching': teaching,
    'gate_mean': gate_mean,
    'distill_scale': scale,
  }
  if algorithm.has_critic:
    out['value_targets'] = algorithm.value_targets(data, hyper)
  out = {name: np.asarray(value, np.float32) for name, value in out.items()}
  if data.action_mask is not None:
    out['action_mask'] = data.action_mask
  return out


def old_gate(data: StepData, hyper: LossConfig) -> np.ndarray:
  """[B, R] the gate before the step's updates, uncentred, for records and baselines."""
  gap, clip = data.gap, hyper.gap_clip
  gap = np.clip(gap, -clip, clip) if clip else gap
  if hyper.gate == 'gap':
    signal = gap
  elif hyper.gate == 'entropy':
    signal = data.old_entropy
  else:
    entropy = np.minimum(data.old_entropy, 1.0)
    signal = entropy + gap - entropy * gap
  return 0.5 * (1.0 + np.tanh(0.5 * hyper.gate_beta * signal))


def policy_objective(
  algorithm: Algorithm, hyper: LossConfig, inputs: LossInputs
) -> tuple[jax.Array, masked.Metrics]:
  r"""The scalar to minimise and its metrics, for a minibatch or a part of one.

  \[ L = c_{pg} L_{PG} - c_H H + c_{KL} L_{KL} + c_V L_V + \lambda_k L_{distill} \]

  each an `aggregate` with the minibatch's normaliser: losses, gradients and metrics
  of disjoint parts of a minibatch add up to those of the whole.

  Args:
    algorithm: the method.
    hyper: hyperparameters; its zero coefficients remove their terms.
    inputs: arrays; gradients reach `logprobs`, `entropy`, `values` and `divergence`.

  Returns:
    The loss (scalar) and metrics, name -> (sum, count). Loss terms are reported per
    token and before their coefficient, whatever the aggregation.

  Source: SDAR (arXiv 2605.15155); verl/workers/actor/dp_actor.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  mask = inputs.response_mask
  credit = jnp.where(mask, inputs.advantages, 0.0)
  metrics = {'advantage_abs': masked.total(jnp.abs(credit), mask)}
  metrics['entropy'] = masked.total(inputs.entropy, mask)
  terms, policy_coef = [], hyper.policy_coef
  if algorithm.needs_teacher(hyper):
    distillation = algorithm.distillation
    metrics |= distillation.metrics(inputs, hyper)
    coef = hyper.distill_coef * inputs.distill_scale
    if hyper.distill_form == 'advantage' and distillation.advantages is not None:
      # The surrogate is homogeneous: its coefficient may move inside, even if it is 0.
      credit = distillation.advantages(policy_coef * credit, inputs, hyper, coef)
      policy_coef = 1.0
    elif distillation.losses is not None:
      losses = inputs.teaching[:, None] * distillation.losses(inputs, hyper)
      metrics['distill_loss'] = masked.total(losses, mask)
      terms.append((coef, losses))
  if policy_coef != 0:
    losses = algorithm.policy_loss(inputs, credit, hyper)
    metrics['policy_loss'] = masked.total(losses, mask)
    terms.append((policy_coef, losses))
  else:
    credit = jnp.zeros_like(credit)  # Without a surrogate no clip stops anything.
  metrics |= algorithm.policy_metrics(inputs, credit, hyper)
  if hyper.kl_coef != 0 and hyper.kl_in == 'loss':
    losses = _kl_losses(inputs, hyper)
    metrics['kl'] = masked.total(losses, mask)
    terms.append((hyper.kl_coef, losses))
  if hyper.entropy_coef != 0:
    terms.append((hyper.entropy_coef, policy.entropy_loss(inputs.entropy, mask)))
  if algorithm.has_critic:
    losses = _value_losses(inputs, hyper)
    metrics['value_loss'] = masked.total(losses, mask)
    terms.append((hyper.value_coef, losses))
  loss = jnp.zeros((), inputs.logprobs.dtype)
  for coef, losses in terms:
    loss += coef * masked.aggregate(losses, mask, inputs.normaliser, hyper.aggregation)
  return loss, metrics


def _kl_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return policy.kl_penalty(
    inputs.logprobs, inputs.ref_logprobs, inputs.response_mask, kind=hyper.kl_kind
  )


def _value_losses(inputs: LossInputs, hyper: LossConfig) -> jax.Array:
  return returns.value_loss(
    inputs.values,
    inputs.old_values,
    inputs.value_targets,
    inputs.response_mask,
    value_clip=hyper.value_clip,
  )
