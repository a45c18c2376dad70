"""The numbers of advantages and losses: `config.algorithm`, key by key. No JAX."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from sdar_jax.methods import gates

CHOICES: Mapping[str, Collection[str]] = {
  'kl_kind': ('k1', 'k2', 'k3', 'abs'),
  'kl_in': ('loss', 'reward'),
  'aggregation': (
    'token-mean',
    'seq-mean-token-sum',
    'seq-mean-token-mean',
    'seq-mean-token-sum-norm',
  ),
  'statistics_over': ('rows', 'trajectories'),
  'distill_form': ('loss', 'advantage'),
  'gate': gates.GATES,
  'divergence': ('reverse_kl', 'forward_kl', 'jsd'),
  'teacher_weights': ('policy', 'ema', 'initial'),
}
_FRACTIONS = (
  'clip_low',
  'gamma',
  'gae_lambda',
  'view_gamma',
  'ema_decay',
  'anchor_similarity',
)
_AT_LEAST_ONE = ('dual_clip',)


def reads(*keys: str) -> Callable[[Callable], Callable]:
  """Declares which keys of `config.algorithm` a function of a method reads."""

  def declare(function: Callable) -> Callable:
    function.reads = frozenset(keys)
    return function

  return declare


class Range(NamedTuple):
  """The values that a method takes for a number."""

  at_most: float = math.inf
  above: float = -math.inf

  def __contains__(self, value: float) -> bool:
    return self.above < value <= self.at_most

  def __str__(self) -> str:
    bounds = []
    if self.above > -math.inf:
      bounds.append(f'above {self.above:g}')
    if self.at_most < math.inf:
      bounds.append(f'at most {self.at_most:g}')
    return ' and '.join(bounds)


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Hyperparameters of advantages and losses; hashable, so static under jit.

  Defaults are the paper's for ALFWorld (arXiv 2605.15155; ZJU-REAL/SDAR@8b85c23,
  examples/sdar_trainer), where a solved episode returns 10; `config.default` makes
  those in return units follow `rollout.success_reward`. A coefficient of 0 removes its
  term: it costs nothing and the result is bit for bit that of a method without it.

  Attributes:
    statistics_over: group statistics over 'rows' or 'trajectories'.
    divide_by_std: divide group-relative advantages by the group's deviation.
    gamma: discount, per turn in GiGPO, per token in REINFORCE++ and PPO.
    gae_lambda: PPO's lambda.
    step_weight: weight of GiGPO's advantages among equal states.
    anchor_similarity: states whose texts are this similar count as equal; 0 asks for
      equal texts.
    policy_coef: weight of the policy loss.
    clip_low: the ratio's lower clip is 1 - clip_low.
    clip_high: the ratio's upper clip is 1 + clip_high.
    dual_clip: bound on the ratio where the advantage is negative, >= 1.
    value_coef: weight of the value loss, per squared return unit.
    value_clip: how far a value may move per step, return units.
    kl_coef: weight of the KL to the initial policy.
    kl_kind: its estimator, one of policy.KL_KINDS.
    kl_in: 'loss' adds it to the loss; 'reward' takes it off the rewards.
    entropy_coef: weight of the entropy bonus.
    aggregation: tokens to a scalar, one of masked.AGGREGATIONS.
    distill_coef: weight of all that the teacher says: of a distillation term; or the
      share, at most 1, in which a teacher reshapes advantages; or return units per
      deviation (ADRS).
    distill_form: 'loss' adds a term; 'advantage' adds the gate to the advantages.
    warmdown_steps: over which distill_coef falls to 0 in a line; 0 keeps it.
    gate: one of gates.GATES: what it looks at is the teacher's 'gap', the student's
      'entropy', or either ('soft_or').
    gate_beta: sharpness of the gate, 1/nat.
    gate_centred: take the step's mean gate off every gate.
    gap_clip: bound on the gap in the gate and in sampled OPSD, nats; 0 is none.
    ratio_limit: bound on the importance ratio that multiplies the gate; 0 leaves the
      ratio out.
    divergence: of whole distributions, one of divergence.KINDS.
    topk: ids of the teacher that it compares, and one bucket for the rest; 0 is the
      whole vocabulary.
    jsd_weight: the teacher's share of the mixture in 'jsd'.
    token_clip: bound on a token's divergence, nats; 0 is none.
    teacher_weights: of the 'policy' before the step's updates, their 'ema', or the
      'initial' policy.
    ema_decay: of the teacher's weights, per step.
    credit_clip: how far a teacher may move a turn's or token's share of the advantage.
    gate_scale: tau of ADRS's gate, per unit of its signal.
    view_gamma: discount per turn of the returns that UCOB compares.
    view_margin: return by which a view must lead to teach the other.
    view_temperature: lead at which its weight is 1, return units.
    view_weight_cap: largest weight.
    action_weight: weight of tokens after the thought (UCOB).
  """

  statistics_over: str = 'rows'
  divide_by_std: bool = True
  gamma: float = 1.0
  gae_lambda: float = 1.0
  step_weight: float = 1.0
  anchor_similarity: float = 0.0
  policy_coef: float = 1.0
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 3.0
  value_coef: float = 0.01
  value_clip: float = 0.5
  kl_coef: float = 0.01
  kl_kind: str = 'k3'
  kl_in: str = 'loss'
  entropy_coef: float = 0.001
  aggregation: str = 'token-mean'
  distill_coef: float = 0.01
  distill_form: str = 'loss'
  warmdown_steps: int = 0
  gate: str = 'gap'
  gate_beta: float = 5.0
  gate_centred: bool = False
  gap_clip: float = 0.0
  ratio_limit: float = 0.0
  divergence: str = 'reverse_kl'
  topk: int = 0
  jsd_weight: float = 0.5
  token_clip: float = 0.0
  teacher_weights: str = 'policy'
  ema_decay: float = 0.99
  credit_clip: float = 0.2
  gate_scale: float = 2.0
  view_gamma: float = 0.95
  view_margin: float = 0.5
  view_temperature: float = 2.0
  view_weight_cap: float = 2.0
  action_weight: float = 1.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      name, value = field.name, getattr(self, field.name)
      if name in CHOICES:
        if value not in CHOICES[name]:
          raise ValueError(f'{name}={value!r}: must be one of {tuple(CHOICES[name])}')
      elif not isinstance(value, bool):
        bound = 1 if name in _AT_LEAST_ONE else 0
        if not (math.isfinite(value) and value >= bound):
          raise ValueError(f'{name}={value}: must be a finite number >= {bound}')
      if name in _FRACTIONS and value > 1:
        raise ValueError(f'{name}={value}: must be at most 1')
    if not 0 < self.jsd_weight < 1:
      raise ValueError(f'jsd_weight={self.jsd_weight}: must be a number in (0, 1)')
    if not self.view_temperature > 0:
      raise ValueError('view_temperature=0: must be a positive number')
    if 0 < self.ratio_limit < 1:
      raise ValueError(f'ratio_limit={self.ratio_limit}: must be 0 or at least 1')

  @property
  def needs_reference(self) -> bool:
    """Whether anything reads the initial policy."""
    return self.kl_coef != 0
