"""Numbers of advantages and losses: `config.algorithm`. No JAX.

A field of `Hyperparameters` is the one place where a number is born: its default, unit,
bound, source and meaning. The config, `--mode=describe` and the checks read them there.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from sdar_jax.advantages.grpo import STATISTICS_OVER
from sdar_jax.keys import Key
from sdar_jax.methods import gates
from sdar_jax.prompts.controls import CONTROLS


def reads(*keys: str) -> Callable[[Callable], Callable]:
  """Declares the keys of `config.algorithm` read by a function."""

  def declare(function: Callable) -> Callable:
    function.reads = frozenset(keys)
    return function

  return declare


def _number(
  default: Any, meaning: str, allowed: str | Collection[str] = '', source: str = ''
) -> Any:
  key = Key(default, meaning, allowed, source)
  return dataclasses.field(default=default, metadata={'key': key})


_AT_LEAST_0, _ABOVE_0, _SHARE = '[0, inf)', '(0, inf)', '[0, 1]'
# Of a term of the loss: squares of its gradient must be numbers in float32, and not 0,
# or no update moves a weight.
_WEIGHT = '0 or [1e-12, 1e12]'
# It multiplies advantages, which a term's weight multiplies again.
_CREDIT = '[0, 1e6]'
# Float32 rounds differences of log-probabilities to about as much.
_NATS = '0 or [1e-6, inf)'
# Nearer to either end the divergence is lost in its own rounding.
_MIXED = '[0.001, 0.999]'


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
  """Hyperparameters of advantages and losses; hashable, static under jit.

  Defaults are the paper's for ALFWorld (arXiv 2605.15155; `ref` is its released code,
  ZJU-REAL/SDAR@8b85c23, examples/sdar_trainer), where a solved episode returns 10;
  `config.default` makes those in return units follow `rollout.success_reward`. A
  coefficient of 0 removes its term: it costs nothing and the result is bit for bit
  that of a method without it.

  Raises:
    ConfigError: a value out of its bounds; one line.
  """

  statistics_over: str = _number(
    'rows', "what a group's mean and deviation are over", STATISTICS_OVER, 'ref'
  )
  divide_by_std: bool = _number(
    True, "divide group-relative advantages by the group's deviation", '', 'ref'
  )
  gamma: float = _number(
    1.0, 'discount, per turn in GiGPO, per token in REINFORCE++ and PPO', _SHARE
  )
  gae_lambda: float = _number(1.0, "PPO's lambda, per token", _SHARE)
  step_weight: float = _number(
    1.0, "weight of GiGPO's advantages among equal states", _CREDIT
  )
  anchor_similarity: float = _number(
    0.0,
    'states whose texts are this similar count as equal; 0 asks for equal texts',
    _SHARE,
  )
  policy_coef: float = _number(1.0, 'weight of the policy loss', _WEIGHT)
  clip_low: float = _number(
    0.2, "the ratio's lower clip is 1 - clip_low", _SHARE, 'ref'
  )
  clip_high: float = _number(
    0.2, "the ratio's upper clip is 1 + clip_high", _AT_LEAST_0, 'ref'
  )
  dual_clip: float = _number(
    3.0, 'bound on the ratio where the advantage is negative', '[1, inf)', 'ref'
  )
  value_coef: float = _number(
    0.01, 'weight of the value loss, per squared return unit', _WEIGHT
  )
  value_clip: float = _number(
    0.5, 'how far a value may move per step, return units', _AT_LEAST_0, 'ref'
  )
  kl_coef: float = _number(
    0.01, 'weight of the KL to the initial policy', _WEIGHT, 'paper'
  )
  kl_kind: str = _number('k3', 'estimator of that KL', ('k1', 'k2', 'k3', 'abs'), 'ref')
  kl_in: str = _number(
    'loss',
    "'loss' adds the KL to the loss, 'reward' takes it off the rewards",
    ('loss', 'reward'),
  )
  entropy_coef: float = _number(
    0.001, 'weight of the entropy bonus, nats', _WEIGHT, 'ref'
  )
  aggregation: str = _number(
    'token-mean',
    'how losses of tokens become a scalar',
    (
      'token-mean',
      'seq-mean-token-sum',
      'seq-mean-token-mean',
      'seq-mean-token-sum-norm',
    ),
    'ref',
  )
  distill_coef: float = _number(
    0.01, 'weight of the distillation term, against the policy loss', _WEIGHT, 'ref'
  )
  distill_form: str = _number(
    'loss',
    "'loss' adds a term, 'advantage' adds the gate to the advantages",
    ('loss', 'advantage'),
    'ref',
  )
  context: str = _number(
    '',
    "what the teacher sees, as a control: '' its method's, 'none' the student's own"
    " prompt, 'other_task' another task's lesson, 'shuffled' its own in disorder",
    CONTROLS,
  )
  credit_mix: float = _number(
    0.5, 'share in which a teacher reshapes advantages (RLSD, AgentOPSD, GRSD)', _SHARE
  )
  credit_clip: float = _number(
    0.2,
    "how far a teacher moves a token's or turn's share of the advantage from 1 (RLSD,"
    ' AgentOPSD, TASPO, UniOPSD)',
    '(0, 1]',
  )
  signal_clip: float = _number(
    3.0, 'bound on the signal of a turn, in size (GRSD)', _ABOVE_0
  )
  gap_coef: float = _number(
    0.001, 'advantage per nat of the gap (OPID, OPDVR, GRPD)', _CREDIT
  )
  gap_floor: float = _number(
    0.0, 'gaps of less, in size, count as none, nats (TASPO)', _AT_LEAST_0
  )
  gap_scale: float = _number(
    1.0, 'gap at which a squashed credit has most of its size, nats', _ABOVE_0
  )
  contrast_coef: float = _number(
    0.5,
    'advantage of a contrast of two teachers, at most or per nat (RLCSD, SIPO)',
    _CREDIT,
  )
  contrast_floor: float = _number(
    0.02,
    'a smaller contrast leaves a token as it is, advantage units (RLCSD)',
    _AT_LEAST_0,
  )
  retire_success: float = _number(
    0.5, 'rate of success from which the teacher may retire (RetireOPD)', _SHARE
  )
  retire_slope: float = _number(
    0.01,
    'share of itself by which the gap must fall in a step, or it counts as at rest'
    ' (RetireOPD)',
    _SHARE,
  )
  retire_decay: float = _number(
    0.9, 'decay of the averages of gap and success, per step (RetireOPD)', _SHARE
  )
  step_reliability: float = _number(
    0.5, "share of a turn's own credit that is no noise (UniOPSD)", '[0.001, 1]'
  )
  trust_decay: float = _number(
    0.9, "decay of the average of two credits' correlation, per step (UniOPSD)", _SHARE
  )
  trust_margin: float = _number(
    2.33,
    'standard errors taken off the average that trust_decay makes (UniOPSD)',
    _AT_LEAST_0,
  )
  unlikely_share: float = _number(
    0.2,
    "share of the step's tokens, or of an episode's turns (OCSD), that count as"
    ' unlikely',
    '[0.001, 1]',
  )
  unlikely_advantage: float = _number(
    -0.5, 'advantage added to unlikely tokens', '[-1e6, 1e6]'
  )
  shaping_coef: float = _number(
    0.05,
    'return units per deviation of a token reward (ADRS), whatever a success pays',
    _CREDIT,
  )
  warmdown_steps: int = _number(
    0,
    "steps over which the teacher's weight falls to 0 in a line; 0 keeps it",
    _AT_LEAST_0,
  )
  gate: str = _number(
    'gap',
    "what the gate looks at: the teacher's gap, the student's entropy, or either",
    gates.GATES,
    'paper',
  )
  gate_beta: float = _number(5.0, 'sharpness of the gate, 1/nat', _AT_LEAST_0, 'paper')
  gate_centred: bool = _number(False, "take the step's mean gate off every gate")
  gap_clip: float = _number(
    0.0,
    'bound on the gap in the gate, in sampled losses and in credit, nats; 0 is none',
    _NATS,
  )
  ratio_limit: float = _number(
    0.0,
    'bound on the importance ratio that multiplies the gate; 0 leaves the ratio out',
    '0 or [1, inf)',
  )
  divergence: str = _number(
    'reverse_kl', 'between whole distributions', ('reverse_kl', 'forward_kl', 'jsd')
  )
  topk: int = _number(
    0,
    'ids of the teacher that the divergence is over, and one bucket for the rest; 0 is'
    ' the whole vocabulary',
    _AT_LEAST_0,
  )
  jsd_weight: float = _number(
    0.5, "the teacher's share of the mixture in 'jsd'", _MIXED
  )
  token_clip: float = _number(
    0.0, "bound on a token's divergence, nats; 0 is none", _NATS
  )
  teacher_weights: str = _number(
    'policy',
    "the 'policy' before the step's updates, an average of its weights over steps"
    " ('ema'), the 'initial' policy, or a model that is 'given' (model.teacher)",
    ('policy', 'ema', 'initial', 'given'),
  )
  ema_decay: float = _number(
    0.99, "decay of a teacher's averaged weights, per step", _SHARE
  )
  gate_scale: float = _number(
    2.0, "tau of ADRS's gate, per return unit, whatever a success pays", _AT_LEAST_0
  )
  view_gamma: float = _number(0.95, 'discount per turn of returns (UCOB)', _SHARE)
  view_margin: float = _number(
    0.5, 'return by which a view must lead to teach the other (UCOB)', _AT_LEAST_0
  )
  view_temperature: float = _number(
    2.0, 'lead at which the weight of a view is 1, return units (UCOB)', _ABOVE_0
  )
  view_weight_cap: float = _number(2.0, 'largest weight of a view (UCOB)', _ABOVE_0)
  action_weight: float = _number(
    1.0, 'weight of tokens after the thought (UCOB)', _AT_LEAST_0
  )

  def __post_init__(self):
    for name, key in KEYS.items():
      key.check(f'algorithm.{name}', getattr(self, name))

  @property
  def needs_reference(self) -> bool:
    """Whether anything reads the initial policy."""
    return self.kl_coef != 0


KEYS: dict[str, Key] = {
  field.name: field.metadata['key'] for field in dataclasses.fields(Hyperparameters)
}
