"""A method is what its row says: every pair, every number, every gate."""

import dataclasses
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from algorithm_cases import (
  BARE,
  MIXED,
  PLAIN_POLICIES,
  POLICIES,
  TEACHERS,
  hyper_of,
  inputs_of,
  sigmoid,
  step_data,
)

from experiments import alfworld
from sdar_jax import config as config_lib
from sdar_jax.config import ConfigError
from sdar_jax.losses import objective
from sdar_jax.losses.objective import policy_objective
from sdar_jax.methods import gates, validity
from sdar_jax.methods.credit import assign_credit
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.table import ALGORITHMS, find

# Whole distributions and weights are the learner's: see test_the_learner_s_numbers.
LEARNERS = ('divergence', 'topk', 'token_clip', 'jsd_weight')
LEARNERS += ('teacher_weights', 'ema_decay')
# Pass@k pays the best of a group alone, and this teacher leaves successes alone.
# And one that reads no reward cannot hear a teacher that gives rewards.
MUTE = ('grpo-passk+ahead', 'opsa+adrs')
PROMPTS = ('context',)  # What teachers see is not a matter of the data below.
LATER = ('retire_success', 'retire_slope', 'retire_decay')  # Of the steps after it.
LATER += ('step_reliability', 'trust_decay', 'trust_margin')
EFFECT_FREE = sorted(n for n in TEACHERS if ALGORITHMS[n].distillation.control)


# Pairs.


@pytest.fixture
def without_metrics(monkeypatch):
  """They are most of the work of an objective that is not compiled."""
  monkeypatch.setattr(objective, '_teacher_metrics', lambda *arguments: {})


def loss_of(name, hyper, inputs, **live):
  row = dataclasses.replace(find(name), policy_metrics=lambda *arguments: {})
  return policy_objective(row, hyper, inputs._replace(**live))[0]


WAVES = np.sin(np.arange(step_data().old_logprobs.size)).reshape(-1, 5)


def slopes(name, steps, hyper):
  """[K] derivatives of the loss along one direction, one for each step's data."""
  every = [inputs_of(name, hyper, step) for step in steps]
  stacked = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *every)

  def slope(logprobs, inputs):
    def scalar(logprobs):
      divergence = None
      if inputs.divergence is not None:  # As of a model: a function of both.
        divergence = (logprobs - inputs.teacher_logprobs) ** 2
      return loss_of(name, hyper, inputs, logprobs=logprobs, divergence=divergence)

    return jax.jvp(scalar, (logprobs,), (np.cos(7 * WAVES),))[1]

  with jax.enable_x64(True):
    moved = steps[0].old_logprobs + 0.1 * WAVES
    return np.asarray(jax.vmap(slope, (None, 0))(moved, stacked))


def pairs_of(teacher):
  names = [teacher, *(f'{policy}+{teacher}' for policy in POLICIES)]
  return [name for name in names if name == teacher or name not in ALGORITHMS]


@pytest.mark.parametrize('teacher', TEACHERS)
def test_the_teacher_of_every_pair_is_heard_or_the_pair_is_refused(
  teacher, without_metrics
):
  data = step_data(step=10)
  other = data._replace(teacher_logprobs=data.teacher_logprobs[::-1] - 0.7)
  moved, still, refused = [], [], []
  for name in pairs_of(teacher):
    try:
      find(name)
    except KeyError as error:
      refused.append(name)
      (line,) = error.args
      assert line.startswith(f'{name!r}: ') and '\n' not in line
      continue
    with np.errstate(all='raise', under='ignore'):
      one, two = slopes(name, (data, other), hyper_of(name, **BARE))
    assert np.isfinite([one, two]).all()
    (still if one == two else moved).append(name)
  assert len(moved) + len(still) + len(refused) == len(pairs_of(teacher))
  seeing = [p for p in POLICIES if p not in PLAIN_POLICIES]
  assert refused == [f'{policy}+{teacher}' for policy in seeing]
  mute = moved if teacher in EFFECT_FREE else still  # To the bit, or at all.
  assert mute == [name for name in mute if name in MUTE]


def is_pair(name):
  """Whether the table joins these two rows, or refuses them as a pair."""
  try:
    return bool(find(name))
  except KeyError as error:
    return 'must be one of' not in error.args[0]


_COUNTED = r'(\d+) names: in (\d+) each teacher .*; in (\d+) the .*; (\d+) are refused'


def test_the_pairs_are_those_that_the_table_knows_of_any_two_rows():
  names = [name for teacher in TEACHERS for name in pairs_of(teacher)]
  found = {f'{a}+{b}' for a in ALGORITHMS for b in ALGORITHMS if is_pair(f'{a}+{b}')}
  assert sorted(names) == sorted({*TEACHERS, *found}) and len(names) == 524
  assert {*TEACHERS, *POLICIES} == {*ALGORITHMS}
  assert EFFECT_FREE == ['grpo+opsd-released', 'low-prob']
  refused = len(TEACHERS) * (len(POLICIES) - len(PLAIN_POLICIES))
  text = (pathlib.Path(__file__).parents[2] / 'docs/results.md').read_text()
  numbers = map(int, re.search(_COUNTED, text).groups())
  assert [*numbers] == [
    len(names),
    len(names) - len(MUTE) - refused,
    len(MUTE),
    refused,
  ]


@pytest.mark.parametrize(
  'row, seeing, line',
  [
    ('sdar', 'all', 'its student sees the very skills that the teacher would'),
    ('sdar', 'half', 'its student sees the very skills that the teacher would'),
    ('sdpo', 'all', "skills that a teacher of the kind 'sibling' does not"),
    ('ucob', 'none', "half of them must see skills, not 'none'"),
    ('ucob', 'all', "half of them must see skills, not 'all'"),
    ('grpo', 'odd', "student_sees_skills='odd': must be one of"),
  ],
)
def test_a_row_of_one_s_own_without_a_lesson_is_refused(row, seeing, line):
  with pytest.raises(ValueError, match=line):
    dataclasses.replace(ALGORITHMS[row], student_sees_skills=seeing)


def test_a_config_with_such_a_pair_is_one_line():
  config = alfworld.get_config('algo=skill-grpo')
  config.algorithm.name = 'skill-grpo+sdar'
  with pytest.raises(ConfigError, match=r"^config\.algorithm\.name='skill-grpo\+sdar'"):
    config_lib.validate(config)
  with pytest.raises(ValueError, match=r"^algo='skill-grpo\+sdar': [^\n]*teach"):
    alfworld.get_config('algo=skill-grpo+sdar')


# Numbers.

# A value unlike any row's and the default, at which the data below differs.
OTHER = {
  'statistics_over': 'trajectories',
  'divide_by_std': False,
  'gamma': 0.7,
  'gae_lambda': 0.6,
  'step_weight': 0.3,
  'anchor_similarity': 0.9,
  'policy_coef': 0.4,
  'clip_low': 0.05,
  'clip_high': 0.06,
  'dual_clip': 1.01,
  'value_coef': 0.2,
  'value_clip': 0.01,
  'kl_coef': 0.2,
  'kl_kind': 'k2',
  'kl_in': 'reward',
  'entropy_coef': 0.2,
  'aggregation': 'seq-mean-token-sum',
  'distill_coef': 0.3,
  'credit_mix': 0.3,
  'gap_coef': 0.3,
  'shaping_coef': 0.3,
  'distill_form': 'advantage',
  'warmdown_steps': 40,
  'gate': 'entropy',
  'gate_beta': 2.0,
  'gate_centred': True,
  'gap_clip': 0.1,
  'ratio_limit': 1.05,
  'divergence': 'jsd',
  'topk': 3,
  'jsd_weight': 0.3,
  'token_clip': 0.3,
  'teacher_weights': 'ema',
  'ema_decay': 0.5,
  'credit_clip': 0.1,
  'signal_clip': 0.1,
  'gate_scale': 0.3,
  'context': 'shuffled',
  'gap_floor': 0.4,
  'gap_scale': 0.7,
  'contrast_coef': 0.3,
  'contrast_floor': 0.6,
  'retire_success': 0.9,
  'retire_slope': 0.2,
  'retire_decay': 0.3,
  'step_reliability': 0.3,
  'trust_decay': 0.3,
  'trust_margin': 0.1,
  'unlikely_share': 0.6,
  'unlikely_advantage': 0.3,
  'view_gamma': 0.6,
  'view_margin': 3.0,
  'view_temperature': 0.7,
  'view_weight_cap': 0.1,
  'action_weight': 1.5,
}
# Where the row's own number, or what goes with it, makes that one no difference.
OTHERWISE = {
  'kl_kind': {'ppo-kl-reward': 'k3'},
  'kl_in': {'ppo-kl-reward': 'loss'},
  'distill_form': {'sdar-advantage': 'loss', 'ppo+sdar-advantage': 'loss'},
  'gate_centred': {'sdar-centred': False},
  'gate_beta': {'grpo+opsd-released': 1.0},
}


def trained(name, hyper):
  """All that these numbers make of a step: its credit, and its loss off the policy."""
  data = step_data(step=10)
  kl = {'k1': 1.0, 'k2': 1.5, 'k3': 2.0, 'abs': 2.5}[hyper.kl_kind]
  data = data._replace(old_kl=kl * data.old_kl)  # As the learner computes it.
  inputs = inputs_of(name, hyper, data)
  live = {'logprobs': data.old_logprobs + 0.5 * WAVES}
  if inputs.values is not None:
    live['values'] = inputs.values + WAVES
  with jax.enable_x64(True):
    return float(loss_of(name, hyper, inputs, **live))


def test_every_number_has_another_value():
  assert OTHER.keys() == validity.KEYS


@pytest.mark.parametrize('name', [*ALGORITHMS, *MIXED])
def test_a_method_reads_the_numbers_that_it_declares_and_no_others(
  name, without_metrics
):
  hyper = hyper_of(name)
  read = validity.keys_read(find(name), hyper)
  value = lambda key: OTHERWISE.get(key, {}).get(name, OTHER[key])
  plain = trained(name, hyper)
  rest = {key: value(key) for key in OTHER.keys() - read}
  rest['value_clip'] = hyper.value_clip if 'value_clip' in read else 0.01
  assert trained(name, dataclasses.replace(hyper, **rest)) == plain
  common = validity.keys_read(find('grpo'), Hyperparameters())
  own = read if name in ('grpo', 'ppo-kl-reward') else read - common
  for key in sorted(own - {*LEARNERS, *PROMPTS, *LATER}):
    assert getattr(hyper, key) != value(key), key
    changed = dataclasses.replace(hyper, **{key: value(key)})
    assert trained(name, changed) != plain, key


def test_the_learner_s_numbers_are_read_where_distributions_or_weights_are():
  for name in TEACHERS:
    hyper = hyper_of(name)
    read = validity.keys_read(find(name), hyper) & {*LEARNERS}
    whole = {'divergence', 'topk', 'token_clip'}
    want = whole if find(name).needs_divergence(hyper) else set()
    want |= set() if name in EFFECT_FREE else {'teacher_weights'}
    want |= {'ema_decay'} if hyper.teacher_weights == 'ema' else set()
    want |= {'jsd_weight'} if hyper.divergence == 'jsd' else set()
    assert read == want, name
  jsd = hyper_of('sdpg', divergence='jsd')
  assert 'jsd_weight' in validity.keys_read(find('sdpg'), jsd)
  assert not validity.keys_read(find('gigpo'), hyper_of('gigpo')) & {*LEARNERS}


def test_functions_of_the_table_declare_what_they_read():
  for name, row in ALGORITHMS.items():
    side = row.distillation
    functions = [row.advantages, row.policy_loss, row.value_targets]
    if side is not None:
      functions += [side.gate, side.step_gate, side.losses, side.advantages]
      functions += [side.rewards, side.credit, side.weights]
    for function in filter(None, functions):
      assert function.reads <= validity.KEYS, (name, function)


def refusal(name, **numbers):
  """The line for a config of a method with these numbers, or None."""
  config = alfworld.get_config(f'algo={name}')
  for key, value in numbers.items():
    config.algorithm[key] = value
  try:
    config_lib.validate(config)
  except ConfigError as error:
    assert '\n' not in str(error)
    return str(error)
  return None


@pytest.mark.parametrize(
  'name, numbers',
  [
    ('rlsd', {'gate': 'entropy'}),
    ('rlsd', {'distill_coef': 0.5}),
    ('adrs', {'credit_mix': 0.1}),
    ('ucob', {'gap_clip': 1.0}),
    ('ucob', {'gate_centred': True}),
    ('ucob', {'ratio_limit': 2.0}),
    ('opsd', {'distill_form': 'advantage'}),
    ('opsd', {'statistics_over': 'trajectories'}),  # No reward reaches it.
    ('sdar-advantage', {'ratio_limit': 2.0}),
    ('sdar', {'gate': 'entropy', 'gap_clip': 1.0}),
    ('sdar', {'ema_decay': 0.5}),
    ('low-prob', {'teacher_weights': 'initial'}),  # It asks no teacher.
    ('grpo+opsd-released', {'context': 'shuffled'}),
    ('sdar', {'distill_coef': 0.0, 'gate': 'entropy'}),
    ('grpo+opsd-released', {'gate': 'entropy'}),
    ('grpo', {'gate_beta': 1.0}),
    ('grpo', {'kl_coef': 0.0, 'kl_kind': 'k1'}),
    ('gspo', {'dual_clip': 2.0}),
    ('rloo', {'divide_by_std': False}),
    ('gigpo+sdpg', {'jsd_weight': 0.3}),
    ('skill-grpo', {'topk': 3}),
  ],
)
def test_a_number_that_nothing_reads_is_refused(name, numbers):
  key = list(numbers)[-1]
  line = refusal(name, **numbers)
  assert line.startswith(f'config.algorithm.{key}={numbers[key]!r}: nothing reads it')
  assert name in line


@pytest.mark.parametrize(
  'name, numbers',
  [
    ('sdar', {'gate': 'soft_or', 'gap_clip': 1.0, 'ratio_limit': 2.0}),
    ('sdar', {'teacher_weights': 'ema', 'ema_decay': 0.5}),
    ('gigpo+sdpg', {'divergence': 'jsd', 'jsd_weight': 0.3}),
    ('rlsd', {'credit_mix': 1.0, 'credit_clip': 1.0}),
    ('opid', {'gap_coef': 1.5}),
    ('grpo', {'gate': 'gap'}),
    ('grpo+opsd-released', {'gate_beta': 1.0, 'teacher_weights': 'initial'}),
  ],
)
def test_a_number_that_is_read_or_usual_is_taken(name, numbers):
  assert refusal(name, **numbers) is None


@pytest.mark.parametrize(
  'name, key, value',
  [
    ('rlsd', 'credit_mix', 1.01),
    ('agent-opsd', 'credit_mix', 2.0),
    ('gigpo+grsd', 'credit_mix', 1.5),
    ('rlsd', 'credit_clip', 0.0),
    ('agent-opsd', 'credit_clip', 1.5),
    ('grsd', 'signal_clip', 0.0),
    ('ucob', 'view_weight_cap', 0.0),
  ],
)
def test_a_share_is_at_most_1_and_a_band_not_nothing(name, key, value):
  line = refusal(name, **{key: value})
  assert line.startswith(f'config.algorithm.{key}={value}: must be ')


def test_numbers_in_return_units_follow_the_reward():
  config = config_lib.default()
  for reward in (10.0, 1.0, 4.0):
    config.rollout.success_reward = reward
    c = config.algorithm
    assert c.view_margin == pytest.approx(0.05 * reward)
    assert c.view_temperature == pytest.approx(0.2 * reward)
    assert c.invalid_penalty == pytest.approx(0.01 * reward)
    assert c.value_clip == pytest.approx(0.05 * reward)
    assert c.value_coef * reward**2 == pytest.approx(1.0)
  numbers = dataclasses.asdict(Hyperparameters())
  default = config_lib.default().algorithm
  assert {key: default[key] for key in numbers} == numbers  # Where success pays 10.


def test_the_unit_of_rewards_changes_nothing_that_ucob_teaches():
  weights = []
  for reward in (10.0, 1.0):
    config = config_lib.default()
    config.rollout.success_reward = reward
    keys = ('view_margin', 'view_temperature')
    data, scale = step_data(), reward / 10
    data = data._replace(scores=scale * data.scores, rewards=scale * data.rewards)
    hyper = hyper_of('ucob', **{key: config.algorithm[key] for key in keys})
    weights.append(assign_credit(find('ucob'), hyper, data)['teaching'])
  np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)
  assert set(weights[0]) > {0, 2}


# Gates.


def gate_in_use(name, hyper, data):
  """(gates of taught tokens in the record, in the metric) on policy; None for none."""
  inputs = inputs_of(name, hyper, data)
  with jax.enable_x64(True):
    metrics = policy_objective(find(name), hyper, inputs)[1]
    metrics = jax.tree.map(np.asarray, metrics)
  known = assign_credit(find(name), hyper, data).get('gate')
  if known is None:
    assert metrics.keys().isdisjoint({'gate', 'gate_histogram', 'distill_abs'})
    return None
  mask = data.response_mask & (inputs.teaching != 0)[:, None]
  mean = float(np.divide(*metrics['gate']))
  np.testing.assert_allclose(mean, known[mask].mean(), rtol=1e-5)
  assert metrics['gate_histogram'][0].sum() == mask.sum()
  return known[mask], mask


@pytest.mark.parametrize('name', TEACHERS)
def test_record_and_metric_have_the_method_s_own_gate_or_none(name):
  data, hyper = step_data(), hyper_of(name)
  side = find(name).distillation
  got = gate_in_use(name, hyper, data)
  assert (got is None) == (side.gate is None and side.step_gate is None)
  if name == 'ucob':  # Unclipped, and not that of algorithm.gate.
    wild = hyper_of(name, gate='entropy', gap_clip=0.01, gate_beta=3.0)
    known, mask = gate_in_use(name, wild, data)
    gap = (data.teacher_logprobs - data.old_logprobs)[mask]
    np.testing.assert_allclose(known, sigmoid(3 * gap), rtol=1e-5)


def test_a_gate_is_one_function_and_one_row(monkeypatch):
  """From there it reaches the config, the loss, the record and the metric."""

  def late_gate(gap, teacher_logprobs, turn_ids, *, gate_beta):
    late = 1.0 + turn_ids
    return gates.gap_gate(gap - 0.5 * late, gate_beta=gate_beta, gap_clip=0.0) + 0 * (
      teacher_logprobs
    )

  with pytest.raises(
    ValueError, match=r"^config\.algorithm\.gate='late': must be one of \('gap', "
  ):
    Hyperparameters(gate='late')
  monkeypatch.setitem(gates.GATES, 'late', late_gate)
  data, hyper = step_data(), hyper_of('sdar', gate='late', gate_beta=3.0, **BARE)
  assert refusal('sdar', gate='late') is None
  assert 'gap_clip=1.0: nothing reads' in refusal('sdar', gate='late', gap_clip=1.0)
  gap = data.teacher_logprobs - data.old_logprobs
  want = sigmoid(3 * (gap - 0.5 * (1.0 + data.turn_ids[:, None])))
  known, mask = gate_in_use('sdar', hyper, data)
  np.testing.assert_allclose(known, want[mask], rtol=1e-5)
  for form in ('loss', 'advantage'):
    changed = dataclasses.replace(hyper, distill_form=form, policy_coef=0.0)
    inputs = inputs_of('sdar', changed, data)

    def scalar(logprobs, inputs=inputs, changed=changed):
      inputs = inputs._replace(logprobs=logprobs)
      return policy_objective(find('sdar'), changed, inputs)[0]

    with jax.enable_x64(True):
      grad = jax.grad(scalar)(jax.numpy.asarray(data.old_logprobs))
    got = -np.asarray(grad) * data.response_mask.sum() / hyper.distill_coef
    np.testing.assert_allclose(got[mask], want[mask], rtol=1e-5)


def test_a_method_of_one_s_own_is_reported_with_its_own_gate():
  def hard_gate(gap):
    return (gap > 0) * 1.0

  def losses(inputs, hyper):
    return -inputs.gate * inputs.logprobs

  side = dataclasses.replace(
    ALGORITHMS['sdar'].distillation,
    gate=lambda hyper: hard_gate,
    losses=losses,
    advantages=None,
  )
  row = dataclasses.replace(ALGORITHMS['sdar'], distillation=side)
  data, hyper = step_data(), Hyperparameters()
  credit = assign_credit(row, hyper, data)
  inputs = inputs_of('sdar', hyper, data, gate=credit['gate'])
  with jax.enable_x64(True):
    metrics = jax.tree.map(np.asarray, policy_objective(row, hyper, inputs)[1])
  mask = data.response_mask & data.taught[:, None]
  up = (data.teacher_logprobs > data.old_logprobs) & mask
  np.testing.assert_array_equal(credit['gate'], up)
  assert metrics['gate'] == (up.sum(), mask.sum())
  total = -data.old_logprobs[up].sum()
  assert math.isclose(metrics['distill_loss'][0], total, rel_tol=1e-6)
  # It declares nothing, so nothing is refused on its behalf.
  assert validity.keys_read(row, hyper) == validity.KEYS
