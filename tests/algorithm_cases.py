"""A step with everything in it, and what the table's rows make of it."""

import dataclasses
import math
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np

from sdar_jax.losses import masked, objective
from sdar_jax.losses.objective import LossInputs, policy_objective
from sdar_jax.methods.credit import assign_credit
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import StepData
from sdar_jax.methods.table import ALGORITHMS, find

TEACHERS = [name for name, row in ALGORITHMS.items() if row.distillation]
POLICIES = [name for name in ALGORITHMS if name not in TEACHERS]
PLAIN_POLICIES = [n for n in POLICIES if ALGORITHMS[n].student_sees_skills == 'none']
MIXED = ['gspo+sdar', 'ppo+sdar-advantage', 'ppo+rlsd', 'ppo+adrs', 'dr-grpo+sdpo']
MIXED += ['reinforce+++grsd', 'reinforce+++adrs', 'gigpo+ucob', 'gigpo+adrs']
# One name for each way to credit a step, and for each to lose it.
CREDITS = ['grpo', 'rloo', 'reinforce++', 'reinforce++-baseline', 'grpo-passk', 'gigpo']
CREDITS += ['ppo', 'ppo-kl-reward', 'sdar-centred', 'rlsd', 'agent-opsd', 'opid']
CREDITS += ['grsd', 'adrs', 'ucob', *MIXED]
CREDITS += ['opsa', 'low-prob', 'rlcsd', 'sipo', 'ocsd', 'icsd', 'taspo', 'opdvr']
CREDITS += ['grpd', 'ahead', 'rstg', 'retire-opd', 'uniopsd']
LOSSES = ['grpo', 'gspo', 'ppo', 'sdar', 'sdar-advantage', 'sdar-centred', 'opsd']
LOSSES += ['opsd-sampled', 'skill-sd', 'adrs', 'ucob', 'dr-grpo+sdpo', 'avsd', 'icsd']
LOSSES += ['rstg']


class Turn(NamedTuple):
  group: int
  trajectory: int
  turn: int
  reward: float
  penalty: float
  place: str
  visit: int  # Part of the observation: the same place may look a little different.
  tokens: int


TURNS = (
  Turn(4, 40, 0, 0.0, 0.0, 'hall', 1, 3),
  Turn(4, 40, 1, 10.0, 0.0, 'kitchen', 1, 2),
  Turn(7, 70, 0, 0.0, 0.0, 'hall', 1, 1),
  Turn(7, 70, 1, 0.0, 0.0, 'shed', 1, 3),
  Turn(7, 70, 2, 10.0, 0.0, 'hall', 2, 2),
  Turn(4, 41, 0, 0.0, 0.0, 'hall', 1, 4),
  Turn(4, 41, 1, 2.5, 0.1, 'kitchen', 2, 1),
  Turn(4, 41, 2, 0.0, 0.0, 'hall', 1, 2),
  Turn(7, 71, 0, 10.0, 0.0, 'hall', 1, 2),  # As much as the group's other one.
  Turn(4, 42, 0, 0.0, 0.0, 'kitchen', 1, 3),
  Turn(4, 42, 1, 0.0, 0.0, 'shed', 2, 1),
  Turn(2, 20, 0, 0.0, 0.0, 'shed', 1, 2),
  Turn(2, 20, 1, 0.0, 0.1, 'hall', 1, 4),
  Turn(2, 21, 0, 0.0, 0.0, 'shed', 1, 3),
  Turn(9, 90, 0, 10.0, 0.0, 'hall', 1, 2),  # Alone in its group.
)
PLACES = {
  'hall': 'you hang your coat in a wide hall',
  'kitchen': 'pots boil over on the black stove',
  'shed': 'rusty spades lean on mossy planks',
}
SKILLED = (41, 71, 21)  # Odd members of their groups.
UNTAUGHT = ((4, 41, 2), (2, 21, 0))
WIDTH = 5  # One more than the longest response.


def step_data(step=0, **changes):
  """The rows of TURNS with random scores of their tokens."""
  random = np.random.default_rng(0)
  columns = lambda name: np.array([getattr(turn, name) for turn in TURNS])
  shape = (len(TURNS), WIDTH)
  paid = {t: sum(u.reward for u in TURNS if u.trajectory == t) for t in range(100)}
  old = -random.exponential(1.0, shape)
  mask = np.arange(WIDTH) < columns('tokens')[:, None]
  data = StepData(
    scores=np.array([paid[t.trajectory] - t.penalty for t in TURNS]),
    rewards=columns('reward'),
    penalties=columns('penalty'),
    successes=np.array([paid[t.trajectory] == 10 for t in TURNS]),
    group_ids=columns('group'),
    trajectory_ids=columns('trajectory'),
    turn_ids=columns('turn'),
    row_mask=np.ones(len(TURNS), bool),
    observations=[f'{PLACES[t.place]}, {t.visit}' for t in TURNS],
    sees_skills=np.isin(columns('trajectory'), SKILLED),
    taught=np.array([t[:3] not in UNTAUGHT for t in TURNS]),
    response_mask=mask,
    old_logprobs=old,
    ref_logprobs=old + 0.3 * random.standard_normal(shape),
    teacher_logprobs=old + 0.7 * random.standard_normal(shape),
    contrast_logprobs=old + 0.6 * np.random.default_rng(1).standard_normal(shape),
    old_entropy=random.uniform(0, 2, shape),
    old_kl=random.uniform(0, 0.5, shape),
    old_values=random.normal(4, 2, shape),
    action_mask=mask & (np.arange(WIDTH) >= 1),
    step=step,
  )
  return data._replace(**changes)


def take(data, rows):
  """These rows of a step."""
  fields = {n: v for n, v in data._asdict().items() if isinstance(v, np.ndarray)}
  fields = {name: value[rows] for name, value in fields.items()}
  return data._replace(observations=[data.observations[i] for i in rows], **fields)


def without_loners(data):
  return take(data, np.flatnonzero(data.group_ids != 9))


def hyper_of(name, **changes):
  """What an experiment's `algo=` makes of the defaults."""
  settings = find(name).all_settings
  keys = [key for key in settings if key.startswith('algorithm.')]
  own = {key.removeprefix('algorithm.'): settings[key] for key in keys}
  return Hyperparameters(**{**own, **changes})


def policy_of(name):
  """The row without a teacher whose policy's side a row with one has."""
  if '+' in name and name not in ALGORITHMS:
    return name.partition('+')[0]
  if name == 'uniopsd':
    return 'gigpo'
  return {'none': 'grpo', 'half': 'skill-grpo'}[find(name).student_sees_skills]


def credit(name, data, **changes):
  return assign_credit(find(name), hyper_of(name, **changes), data)


def assert_close(got, want, rtol=1e-6, atol=1e-7):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x)))


def inputs_of(name, hyper, data, **changes):
  """What the learner hands over, on policy: None where it has nothing to hand."""
  row, taught = find(name), find(name).needs_teacher(hyper)
  two = len(row.teacher_scores(hyper)) > 1
  got = assign_credit(row, hyper, data)
  critic = data.old_values if row.has_critic else None
  inputs = LossInputs(
    logprobs=data.old_logprobs,
    entropy=data.old_entropy,
    values=critic,
    divergence=data.old_kl + 0.01 if row.needs_divergence(hyper) else None,
    old_logprobs=data.old_logprobs,
    ref_logprobs=data.ref_logprobs if hyper.needs_reference else None,
    teacher_logprobs=data.teacher_logprobs if taught else None,
    contrast_logprobs=data.contrast_logprobs if two else None,
    old_values=critic,
    advantages=got['advantages'],
    value_targets=got.get('value_targets'),
    response_mask=data.response_mask,
    action_mask=got['action_mask'] if hyper.action_weight != 1 else None,
    teaching=got['teaching'],
    turn_ids=data.turn_ids,
    gate=got.get('gate'),
    gate_mean=got['gate_mean'],
    distill_scale=got['distill_scale'],
    normaliser=masked.normaliser_of(
      data.response_mask, hyper.aggregation, length=WIDTH
    ),
  )
  return inputs._replace(**changes)


LIVE = ('logprobs', 'entropy', 'values', 'divergence')
BARE = {'kl_coef': 0.0, 'entropy_coef': 0.0}  # The policy's term and the teacher's.


def evaluate(name, hyper, inputs, quiet=False):
  """((loss, metrics), gradients of what is live): float64, eagerly."""
  live = {n: getattr(inputs, n) for n in LIVE if getattr(inputs, n) is not None}
  row, nothing = find(name), lambda *arguments: {}
  if quiet:  # Metrics are most of the work where nothing is compiled.
    row = dataclasses.replace(row, policy_metrics=nothing)
  teachers = nothing if quiet else objective._teacher_metrics

  def scalar(live):
    return policy_objective(row, hyper, inputs._replace(**live))

  with jax.enable_x64(True), mock.patch.object(objective, '_teacher_metrics', teachers):
    live = jax.tree.map(jax.numpy.asarray, live)
    out = jax.value_and_grad(scalar, has_aux=True)(live)
    return jax.tree.map(np.asarray, out)


def gradient(name, data=None, changes=None, **hyper):
  """(-gradient by logprobs times the number of tokens, what it was taken at)."""
  data = step_data() if data is None else data
  hyper = hyper_of(name, **{**BARE, **hyper})
  inputs = inputs_of(name, hyper, data, **(changes or {}))
  grads = evaluate(name, hyper, inputs, quiet=True)[1]
  return -grads['logprobs'] * data.response_mask.sum(), inputs


def taught_tokens(data):
  return data.response_mask & data.taught[:, None]


def gate_of(data, beta=5.0, clip=math.inf):
  gap = data.teacher_logprobs - data.old_logprobs
  return np.where(taught_tokens(data), sigmoid(beta * np.clip(gap, -clip, clip)), 0)
