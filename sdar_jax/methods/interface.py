"""Interface of a method: data, teacher's side, whole row. No JAX.

A method is an `Algorithm` of pure functions and numbers; nothing asks which one it is.
Its parts meet in `methods.credit` on the host and in `losses.objective` on the device.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdar_jax.advantages import anchors, returns
from sdar_jax.batching import rows
from sdar_jax.methods import gates, seeing
from sdar_jax.methods.hyperparameters import Hyperparameters

# Score arrays [B, R] of sampled tokens, computed before the first update.
SCORES = (
  'old_logprobs',
  'ref_logprobs',
  'teacher_logprobs',
  'contrast_logprobs',
  'old_entropy',
  'old_kl',
  'old_values',
)
# Of those, the ones of the teacher's contexts, in order.
TEACHER_SCORES = ('teacher_logprobs', 'contrast_logprobs')


class StepData(NamedTuple):
  """A step's rows, one per turn, for credit assignment. NumPy.

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
    contrast_logprobs: [B, R] float, nats, under the teacher's second context, or None.
    old_entropy: [B, R] float, nats, or None.
    old_kl: [B, R] float, nats, to the initial policy as kl_kind says, or None.
    old_values: [B, R] float, return units, the critic's, or None.
    action_mask: [B, R] bool, tokens after the thought, or None.
    step: passes of the loop before this one.
    gate: [B, R] in [0, 1], the method's, before this step's updates, or None.
    token_rewards: [B, R] float, return units, beyond those of `scores`, or None.
    memory: what `Distillation.remember` kept of the steps before.
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
  contrast_logprobs: np.ndarray | None
  old_entropy: np.ndarray | None
  old_kl: np.ndarray | None
  old_values: np.ndarray | None
  action_mask: np.ndarray | None
  step: int
  gate: np.ndarray | None = None
  token_rewards: np.ndarray | None = None
  memory: Mapping[str, float] = {}

  @property
  def taught_mask(self) -> np.ndarray:
    """Selects response tokens of taught rows, [B, R] bool."""
    return self.response_mask & self.taught[:, None]

  @property
  def gap(self) -> np.ndarray:
    """Takes teacher minus pre-update policy, [B, R] nats; 0 where untaught."""
    return np.where(self.taught_mask, self.teacher_logprobs - self.old_logprobs, 0.0)

  @property
  def success_rates(self) -> np.ndarray:
    """Computes the share of a row's group that solved the task, [B]."""
    out = np.zeros(len(self.group_ids))
    for group in np.unique(self.group_ids[self.row_mask]):
      rows = (self.group_ids == group) & self.row_mask
      _, first = np.unique(self.trajectory_ids[rows], return_index=True)
      out[rows] = self.successes[rows][first].mean()
    return out

  @property
  def contrast(self) -> np.ndarray:
    """Takes one context minus the other, [B, R] nats; 0 where untaught."""
    told_apart = self.teacher_logprobs - self.contrast_logprobs
    return np.where(self.taught_mask, told_apart, 0.0)

  @property
  def gate_inputs(self) -> gates.GateInputs:
    """Collects the inputs of a gate before this step's updates."""
    shown = lambda values: (
      None if values is None else np.where(self.taught_mask, values, 0.0)
    )
    return gates.GateInputs(
      gap=self.gap,
      entropy=shown(self.old_entropy),
      logprobs=shown(self.old_logprobs),
      teacher_logprobs=shown(self.teacher_logprobs),
      turn_ids=shown(self.turn_ids[:, None]),
    )

  def discounted(self, gamma: float) -> np.ndarray:
    """Sums discounted rewards from each turn on, [B] return units."""
    return returns.step_returns(
      self.rewards, self.trajectory_ids, self.turn_ids, self.row_mask, gamma=gamma
    )

  def anchor_ids(self, similarity: float) -> np.ndarray:
    """Numbers the states of a group's rows, [B]; 0 asks for equal texts."""
    return anchors.anchor_ids(
      self.observations, self.group_ids, similarity=similarity or None
    )


@dataclasses.dataclass(frozen=True)
class DeviceFunction:
  """A jitted part of a method, imported with JAX at its first call.

  Attributes:
    name: 'module:function' below sdar_jax.
    reads: keys of `config.algorithm` that it reads.
  """

  name: str
  reads: frozenset[str]

  def __call__(self, *args: Any) -> Any:
    module, _, function = self.name.partition(':')
    return getattr(importlib.import_module(f'sdar_jax.{module}'), function)(*args)


def on_device(name: str, *keys: str) -> DeviceFunction:
  """Names a 'module:function' of `losses` (or of `terms`), and its keys."""
  module, _, function = name.rpartition(':')
  return DeviceFunction(f'losses.{module or "terms"}:{function}', frozenset(keys))


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The teacher's side of a method, for any policy's side.

  Functions declare what they read: on the host by `hyperparameters.reads`, on the
  device by `on_device`.

  Attributes:
    context: what the teacher's prompt shows beyond the student's: one of
      `prompts.teacher.CONTEXTS`.
    contrast: what a second prompt shows, whose log-probs the first's are compared with,
      or None; a row is taught where both show something.
    coef: the key that weighs the teacher; 0 there removes it.
    gate: (hyper) -> the gate, a function as in `gates.GATES`; what it answers is
      `inputs.gate` of the loss, the metric and the record. None for a method without,
      or with a `step_gate`.
    step_gate: (data, hyper) -> [B, R] the gate of a method whose gate looks at the
      whole step.
    losses: (inputs, hyper) -> [B, T] losses per token before `coef`, or None.
      Used where distill_form is 'loss'.
    advantages: (advantages [B, T], inputs, hyper, coef) -> [B, T] advantages, on the
      device. Used where distill_form is 'advantage'.
    rewards: (data, hyper, coef) -> [B, R] rewards of tokens, return units, which
      advantages are estimated from; on the host over the whole step, in either form.
    credit: (advantages [B, R], data, hyper, coef) -> [B, R] advantages, likewise.
    weights: (data, hyper) -> [B] weights of the rows' terms, or None for 1 each.
    whole_distribution: `losses` reads `inputs.divergence`.
    reads_actions: `credit` reads `data.action_mask`.
    remember: (data, hyper) -> what later steps shall know, numbers by name, kept in
      checkpoints. Its 'share' multiplies the teacher's weight from the next step on; at
      0 the teacher is not asked any more.
    control: with its settings the teacher has no effect at all, which is its point.
  """

  context: str
  contrast: str | None = None
  coef: str = 'distill_coef'
  gate: Callable[[Hyperparameters], gates.Gate] | None = None
  step_gate: Callable[[StepData, Hyperparameters], np.ndarray] | None = None
  losses: Callable[[Any, Hyperparameters], Any] | None = None
  advantages: Callable[..., Any] | None = None
  rewards: Callable[..., np.ndarray] | None = None
  credit: Callable[..., np.ndarray] | None = None
  weights: Callable[[StepData, Hyperparameters], np.ndarray] | None = None
  whole_distribution: bool = False
  reads_actions: bool = False
  remember: Callable[[StepData, Hyperparameters], dict[str, float]] | None = None
  control: bool = False

  @property
  def contexts(self) -> tuple[str, ...]:
    """Lists what its prompts show, one or two."""
    return (self.context,) if self.contrast is None else (self.context, self.contrast)

  def weight(self, hyper: Hyperparameters) -> float:
    """Reads the number that weighs the teacher."""
    return getattr(hyper, self.coef)

  def in_advantages(self, hyper: Hyperparameters) -> bool:
    """Whether the term enters the advantages and not the loss."""
    return hyper.distill_form == 'advantage' and self.advantages is not None


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One method: a row of `table.ALGORITHMS`.

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
    rewards_tokens: `advantages` reads `data.token_rewards`; others get their sum over
      a row in its score.
    compares_members: whether the advantages are relative to a group's other members.
    reads_entropy: `advantages` reads `data.old_entropy`.
    settings: config values of the policy's side, 'algorithm.clip_high' -> 0.28.
    teacher_settings: config values of the teacher's side.
  """

  summary: str
  source: str
  advantages: Callable[[StepData, Hyperparameters], np.ndarray]
  policy_loss: Callable[[Any, Any, Hyperparameters], Any]
  policy_metrics: Callable[[Any, Any, Hyperparameters], Any]
  value_targets: Callable[[StepData, Hyperparameters], np.ndarray] | None = None
  distillation: Distillation | None = None
  student_sees_skills: str = 'none'
  rewards_tokens: bool = False
  compares_members: bool = True
  reads_entropy: bool = False
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  teacher_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    context = self.distillation.context if self.distillation is not None else None
    seeing.check(self.student_sees_skills, context)

  @property
  def has_critic(self) -> bool:
    """Whether a value head is trained beside the policy."""
    return self.value_targets is not None

  @property
  def all_settings(self) -> dict[str, Any]:
    """Joins the config values of both sides."""
    return {**self.settings, **self.teacher_settings}

  def needs_teacher(self, hyper: Hyperparameters) -> bool:
    """Whether anything reads `teacher_logprobs` under these hyperparameters."""
    return self.distillation is not None and self.distillation.weight(hyper) != 0

  def teacher_scores(self, hyper: Hyperparameters) -> tuple[str, ...]:
    """Names the scores of its teacher, one for each context."""
    taught = self.needs_teacher(hyper)
    return TEACHER_SCORES[: len(self.distillation.contexts)] if taught else ()

  def scores_itself(self, hyper: Hyperparameters) -> bool:
    """Whether the teacher's weights and prompt are the student's."""
    same = 'none' in (self.distillation.context, hyper.context)
    return same and hyper.teacher_weights == 'policy'

  def needs_divergence(self, hyper: Hyperparameters) -> bool:
    """Whether the loss reads whole distributions of a teacher."""
    return self.needs_teacher(hyper) and self.distillation.whole_distribution

  def shows_skills(self, hyper: Hyperparameters) -> bool:
    """Whether a teacher, or a student, is shown skills."""
    kinds = {'skills', 'other_view'}
    taught = self.needs_teacher(hyper) and hyper.context != 'none'
    taught = taught and not kinds.isdisjoint(self.distillation.contexts)
    return taught or self.student_sees_skills != 'none'

  def needs_entropy(self, hyper: Hyperparameters) -> bool:
    """Whether a gate, or an estimator, reads `old_entropy`."""
    gated = self.needs_teacher(hyper) and self.distillation.gate is not None
    gated = gated and 'entropy' in gates.fields(self.distillation.gate(hyper))
    return gated or self.reads_entropy

  def needs_actions(self, hyper: Hyperparameters) -> bool:
    """Whether credit or the loss tells actions from thoughts."""
    taught = self.needs_teacher(hyper) and self.distillation.reads_actions
    return taught or hyper.action_weight != 1

  def least_group_size(self, hyper: Hyperparameters) -> int:
    """Counts the members without which a part of the method is mute."""
    least = 2 if self.compares_members and hyper.policy_coef != 0 else 1
    if self.student_sees_skills == 'half':
      least = 2
    if self.needs_teacher(hyper) and hyper.context in ('', 'shuffled'):
      kinds = self.distillation.contexts
      least = max(least, *(seeing.MEMBERS.get(kind, 1) for kind in kinds))
    return least

  def sees_skills(self, member: int) -> bool:
    """Whether this member of a group is shown skills."""
    odd = self.student_sees_skills == 'half' and member % 2 == 1
    return self.student_sees_skills == 'all' or odd


def step_data(
  batch_rows: Sequence[rows.Row],
  scores: Mapping[str, np.ndarray],
  *,
  sees_skills: Sequence[bool],
  taught: np.ndarray | None,
  thought_ends: Sequence[int] | None,
  step: int,
  memory: Mapping[str, float] | None = None,
) -> StepData:
  """Gathers what credit assignment reads of a step's rows.

  Args:
    batch_rows: [B].
    scores: [B, R] those of SCORES that the method needs, R the longest response.
    sees_skills: [B], as in `StepData`.
    taught: [B], as in `StepData`.
    thought_ends: [B] response tokens before the action, or None for no action mask.
    step: as in `StepData`.
    memory: as in `StepData`.
  """
  sizes = np.asarray([len(row.turn.response_ids) for row in batch_rows])
  columns = np.arange(int(sizes.max()))
  response_mask = columns < sizes[:, None]
  action_mask = None
  if thought_ends is not None:
    action_mask = (columns >= np.asarray(thought_ends)[:, None]) & response_mask
  return StepData(
    **rows.identities(batch_rows),
    **{name: scores.get(name) for name in SCORES},
    sees_skills=np.asarray(sees_skills),
    taught=taught,
    response_mask=response_mask,
    action_mask=action_mask,
    step=step,
    memory=memory or {},
  )
