"""Every row of the table, whole: a step's rewards and scores to gradients of tokens.

The oracles are loops over the formulas of the papers, in float64.
"""

import dataclasses
import math
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest

from experiments import alfworld, arguments
from sdar_jax import config as config_lib
from sdar_jax.losses import masked, objective
from sdar_jax.losses.inputs import LossInputs
from sdar_jax.losses.objective import policy_objective
from sdar_jax.methods import hyperparameters
from sdar_jax.methods.credit import assign_credit
from sdar_jax.methods.gates import GATES
from sdar_jax.methods.hyperparameters import LossConfig
from sdar_jax.methods.interface import StepData
from sdar_jax.methods.table import ALGORITHMS, find
from sdar_jax.prompts import teacher as teacher_lib

TEACHERS = [name for name, row in ALGORITHMS.items() if row.distillation]
POLICIES = [name for name in ALGORITHMS if name not in TEACHERS]
PLAIN_POLICIES = [n for n in POLICIES if ALGORITHMS[n].student_sees_skills == 'none']
MIXED = ['gspo+sdar', 'ppo+sdar-advantage', 'ppo+rlsd', 'ppo+adrs', 'dr-grpo+sdpo']
MIXED += ['reinforce+++grsd', 'reinforce+++adrs', 'gigpo+ucob', 'gigpo+adrs']
# One name for each way to credit a step, and for each to lose it.
CREDITS = ['grpo', 'rloo', 'reinforce++', 'reinforce++-baseline', 'grpo-passk', 'gigpo']
CREDITS += ['ppo', 'ppo-kl-reward', 'sdar-centred', 'rlsd', 'agent-opsd', 'opid']
CREDITS += ['grsd', 'adrs', 'ucob', *MIXED]
LOSSES = ['grpo', 'gspo', 'ppo', 'sdar', 'sdar-advantage', 'sdar-centred', 'opsd']
LOSSES += ['opsd-sampled', 'skill-sd', 'adrs', 'ucob', 'dr-grpo+sdpo']


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
  return LossConfig(**{**own, **changes})


def credit(name, data, **changes):
  return assign_credit(find(name), hyper_of(name, **changes), data)


def assert_close(got, want, rtol=1e-6, atol=1e-7):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


# The table.


@pytest.mark.parametrize('name', ALGORITHMS)
def test_a_row_says_what_it_is_and_is_found(name):
  row = ALGORITHMS[name]
  assert find(name) is row
  assert row.summary and row.source
  summaries = [other.summary for other in ALGORITHMS.values()]
  assert summaries.count(row.summary) == 1
  assert row.distillation is None or row.distillation.context in teacher_lib.CONTEXTS


@pytest.mark.parametrize('name', [*ALGORITHMS, *MIXED])
def test_settings_are_config_keys_and_arrive(name):
  settings = find(name).all_settings
  assert set(settings) <= set(config_lib.flatten(config_lib.default('alfworld')))
  config = alfworld.get_config(f'model=tiny,algo={name}')
  config_lib.validate(config)
  values = config_lib.flatten(config)
  assert values['algorithm.name'] == name
  own = {**settings, **arguments.tiny_settings(name)}
  assert {key: values[key] for key in own} == own


def test_any_plain_policy_is_found_with_any_teacher():
  for policy in PLAIN_POLICIES:
    for teacher in TEACHERS:
      if f'{policy}+{teacher}' not in ALGORITHMS:
        row, base = find(f'{policy}+{teacher}'), ALGORITHMS[policy]
        seeing = ALGORITHMS[teacher].student_sees_skills
        assert row == dataclasses.replace(
          base,
          summary=f'{base.summary}; {ALGORITHMS[teacher].summary}',
          source=f'{base.source}; {ALGORITHMS[teacher].source}',
          distillation=ALGORITHMS[teacher].distillation,
          teacher_settings=ALGORITHMS[teacher].teacher_settings,
          student_sees_skills=seeing,
        )


def test_a_combination_takes_numbers_from_both_sides():
  assert find('gigpo+sdar').all_settings == {
    'algorithm.gamma': 0.95,
    'algorithm.step_weight': 1.0,
    'algorithm.distill_coef': 0.01,
    'algorithm.gate': 'gap',
    'algorithm.gate_beta': 5.0,
  }
  both = find('reinforce++-baseline+rlsd')
  assert both.advantages is ALGORITHMS['reinforce++-baseline'].advantages
  assert both.all_settings == {
    'algorithm.credit_mix': 0.5,
    'algorithm.credit_clip': 0.2,
    'algorithm.warmdown_steps': 100,
  }
  assert hyper_of('opsd').policy_coef == 0
  assert hyper_of('grpo+opsd').policy_coef == 1
  assert hyper_of('grpo+opsd').divergence == 'forward_kl'
  assert hyper_of('grpo+opsd-released').gate_beta == 0  # A row of its own.
  assert hyper_of('opsd-released').gate_beta == 5


@pytest.mark.parametrize(
  ('name', 'numbers'),
  [
    ('sdar', {'distill_coef': 0.01, 'gate_beta': 5.0, 'gap_clip': 0.0}),
    ('opsd', {'distill_coef': 1.0, 'token_clip': 0.05, 'teacher_weights': 'initial'}),
    ('opsd-sampled', {'distill_coef': 1.0, 'gap_clip': 5.0, 'policy_coef': 0.0}),
    ('sdpg', {'distill_coef': 0.01, 'divergence': 'reverse_kl', 'topk': 0}),
    ('sdpo', {'distill_coef': 1.0, 'topk': 20, 'teacher_weights': 'ema'}),
    ('rlsd', {'credit_mix': 0.5, 'credit_clip': 0.2, 'warmdown_steps': 100}),
    ('skill-sd', {'distill_coef': 0.001, 'warmdown_steps': 100}),
    ('agent-opsd', {'credit_mix': 0.5, 'credit_clip': 0.2, 'warmdown_steps': 0}),
    ('opid', {'gap_coef': 0.001, 'gap_clip': 0.0}),
    ('grsd', {'credit_mix': 0.5, 'signal_clip': 3.0}),
    ('adrs', {'shaping_coef': 0.05, 'gate_scale': 2.0}),
    ('ucob', {'distill_coef': 0.1, 'view_gamma': 0.95, 'action_weight': 2.0}),
  ],
)
def test_teachers_bring_their_papers_numbers(name, numbers):
  hyper = hyper_of(name)
  assert {key: getattr(hyper, key) for key in numbers} == numbers


@pytest.mark.parametrize(
  ('name', 'seeing'),
  [
    ('grpo', [False, False, False, False]),
    ('gigpo+sdar', [False, False, False, False]),
    ('skill-grpo', [True, True, True, True]),
    ('ucob', [False, True, False, True]),
    ('gigpo+ucob', [False, True, False, True]),
  ],
)
def test_whose_prompts_show_skills(name, seeing):
  assert [find(name).sees_skills(member) for member in range(4)] == seeing


@pytest.mark.parametrize(
  'name',
  [
    '',
    '+',
    'GRPO',
    'grpo+',
    '+sdar',
    'grpo+dpo',
    'dpo+sdar',
    'sdar+grpo',
    'sdar+rlsd',  # Two teachers.
    'opsd+rlsd',
    'gigpo+skill-grpo',
    'gigpo+sdar+rlsd',
  ],
)
def test_an_unknown_name_is_one_line_with_what_there_is(name):
  with pytest.raises(KeyError) as caught:
    find(name)
  (message,) = caught.value.args
  assert '\n' not in message
  assert message.startswith(f'{name!r}: must be one of ')
  listed = message.split('one of ')[1].split(', or')[0].split(', ')
  assert listed == list(ALGORITHMS)


# Credit of the policies' sides.


def peers(data, i, over='rows'):
  """Row i's group: all its rows, or the first of each of its trajectories."""
  found, seen = [], set()
  for j in range(len(data.scores)):
    again = over == 'trajectories' and data.trajectory_ids[j] in seen
    if data.group_ids[j] == data.group_ids[i] and not again:
      found.append(j)
      seen.add(data.trajectory_ids[j])
  return found


def loop_grpo(data, over='rows', divide=True, scores=None):
  scores = data.scores if scores is None else scores
  out = np.zeros(len(scores))
  for i in range(len(scores)):
    counted = scores[peers(data, i, over)]
    mean, std = (counted.mean(), counted.std(ddof=1)) if len(counted) > 1 else (0, 1)
    out[i] = scores[i] - mean
    if divide:  # Where those that count are equal, nobody is better.
      out[i] = out[i] / (std + 1e-6) if std > 0 else 0
  return out


def loop_rloo(data, over='rows'):
  out = np.zeros(len(data.scores))
  for i, score in enumerate(data.scores):
    counted = peers(data, i, over)
    if i in counted:
      others = [data.scores[j] for j in counted if j != i]
      out[i] = score - np.mean(others) if others else score
    else:
      scale = len(counted) / (len(counted) - 1)
      out[i] = scale * (score - data.scores[counted].mean())
  return out


def spread(rows, mask):
  return np.where(mask, np.asarray(rows)[:, None], 0)


def loop_whiten(values, mask):
  chosen = [values[i, t] for i, t in zip(*np.nonzero(mask))]
  return np.where(
    mask, (values - np.mean(chosen)) / np.sqrt(np.var(chosen, ddof=1) + 1e-8), 0
  )


def loop_discounted(data, gamma):
  """Rewards from each turn of a trajectory on."""
  out = np.zeros(len(data.rewards))
  for i in range(len(out)):
    for j in range(len(out)):
      later = data.turn_ids[j] - data.turn_ids[i]
      if data.trajectory_ids[i] == data.trajectory_ids[j] and later >= 0:
        out[i] += gamma**later * data.rewards[j]
  return out


def loop_gigpo(data, states, gamma=0.95, weight=1.0, divide=True):
  returns = loop_discounted(data, gamma) - data.penalties
  out = loop_grpo(data, divide=divide)
  for i in range(len(out)):
    same = [j for j in peers(data, i) if states[j] == states[i]]
    if len(same) > 1:
      lead = returns[i] - returns[same].mean()
      std = returns[same].std(ddof=1) if divide else 1 - 1e-6
      out[i] += weight * lead / (std + 1e-6)
  return out


def loop_gae(rewards, data, gamma, lam):
  """[B, R] advantages: sums of discounted temporal differences, term by term."""
  out = np.zeros(rewards.shape)
  for i, length in enumerate(data.response_mask.sum(1)):
    values = [*data.old_values[i, :length], 0.0]
    for t in range(length):
      for u in range(t, length):
        delta = rewards[i, u] + gamma * values[u + 1] - values[u]
        out[i, t] += (gamma * lam) ** (u - t) * delta
  return out


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
@pytest.mark.parametrize('name', ['grpo', 'dapo', 'gspo', 'skill-grpo', 'skill-grpo*'])
def test_grpo_credit(name, over):
  data = step_data()
  want = spread(loop_grpo(data, over), data.response_mask)
  got = credit(name, data, statistics_over=over)
  assert_close(got['advantages'], want)
  assert got['advantages'].dtype == np.float32
  np.testing.assert_array_equal(got['teaching'], 0)
  assert 'value_targets' not in got


def test_grpo_credit_in_numbers():
  got = credit('grpo', step_data())['advantages'][:, 0]
  # 10, 10, 2.5, 2.4, 2.5, 0 and 0 have the mean 3.914286 and the deviation 4.301329.
  four = [1.414845, 1.414845, -0.328802, -0.352051, -0.328802, -0.910018, -0.910018]
  assert_close(got[[0, 1, 5, 6, 7, 9, 10]], four, atol=1e-6)
  # 0, -0.1 and 0 have the deviation 0.057735: a penalty is all there is.
  assert_close(got[[11, 12, 13]], [0.577340, -1.154681, 0.577340], atol=1e-6)
  np.testing.assert_array_equal(got[[2, 3, 4, 8]], 0)  # 10 for all.
  assert_close(got[14], 10, rtol=2e-6)  # Alone: the score itself.


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
def test_credit_without_a_deviation(over):
  data = step_data()
  want = spread(loop_grpo(data, over, divide=False), data.response_mask)
  assert_close(credit('dr-grpo', data, statistics_over=over)['advantages'], want)
  want = spread(loop_rloo(data, over), data.response_mask)
  assert_close(credit('rloo', data, statistics_over=over)['advantages'], want)


def test_pass_at_k_pays_every_turn_of_the_best_its_lead():
  got = credit('grpo-passk', step_data())['advantages']
  # Of 10, 2.5 and 0 per trajectory: the deviation is 5.204165.
  lead = 7.5 / (math.sqrt(325 / 12) + 1e-6)
  want = np.zeros(got.shape)
  want[0, :3] = want[1, :2] = lead
  assert_close(got, want)


@pytest.mark.parametrize('gamma', [1.0, 0.8])
def test_reinforce_plus_plus_credit(gamma):
  data = step_data()
  returns = np.zeros(data.response_mask.shape)
  for i, turn in enumerate(TURNS):
    for t in range(turn.tokens):
      returns[i, t] = gamma ** (turn.tokens - 1 - t) * data.scores[i]
  want = loop_whiten(returns, data.response_mask)
  assert_close(credit('reinforce++', data, gamma=gamma)['advantages'], want)


@pytest.mark.parametrize('over', ['rows', 'trajectories'])
def test_reinforce_plus_plus_baseline_credit(over):
  data = step_data()
  rows = loop_grpo(data, over, divide=False)
  want = loop_whiten(spread(rows, data.response_mask), data.response_mask)
  got = credit('reinforce++-baseline', data, statistics_over=over)
  assert_close(got['advantages'], want)


@pytest.mark.parametrize('similarity', [0.0, 0.9])
@pytest.mark.parametrize('divide', [True, False])
@pytest.mark.parametrize('weight', [1.0, 0.3])
def test_gigpo_credit(similarity, divide, weight):
  data = step_data()
  states = [t.place if similarity else (t.place, t.visit) for t in TURNS]
  want = loop_gigpo(data, states, weight=weight, divide=divide)
  got = credit(
    'gigpo',
    data,
    anchor_similarity=similarity,
    divide_by_std=divide,
    step_weight=weight,
  )
  assert_close(got['advantages'], spread(want, data.response_mask))


def test_ppo_credit_is_the_whitened_return_beyond_the_value():
  data = step_data()
  mask = data.response_mask
  got = credit('ppo', data)
  beyond = spread(data.scores, mask) - data.old_values
  assert_close(got['advantages'], loop_whiten(beyond, mask))
  assert_close(got['value_targets'], spread(data.scores, mask))


@pytest.mark.parametrize('kl_in', ['loss', 'reward'])
def test_ppo_credit_with_discounts(kl_in):
  data = step_data()
  rewards = np.zeros(data.response_mask.shape)
  for i, turn in enumerate(TURNS):
    if kl_in == 'reward':
      rewards[i, : turn.tokens] = -0.3 * data.old_kl[i, : turn.tokens]
    rewards[i, turn.tokens - 1] += data.scores[i]
  advantages = loop_gae(rewards, data, 0.9, 0.7)
  got = credit('ppo', data, gamma=0.9, gae_lambda=0.7, kl_in=kl_in, kl_coef=0.3)
  assert_close(got['advantages'], loop_whiten(advantages, data.response_mask))
  targets = np.where(data.response_mask, advantages + data.old_values, 0)
  assert_close(got['value_targets'], targets)


def test_ppo_kl_reward_takes_the_kl_off_every_token():
  data = step_data()
  assert hyper_of('ppo-kl-reward').kl_kind == 'k1'
  got = credit('ppo-kl-reward', data, kl_coef=0.3)
  want = np.zeros(data.response_mask.shape)
  for i, turn in enumerate(TURNS):
    for t in range(turn.tokens):
      want[i, t] = data.scores[i] - 0.3 * sum(data.old_kl[i, t : turn.tokens])
  assert_close(got['value_targets'], want)
  beyond = want - data.old_values
  assert_close(got['advantages'], loop_whiten(beyond, data.response_mask))
  free = credit('ppo-kl-reward', data._replace(old_kl=None), kl_coef=0.0)
  assert_same(free, credit('ppo', data))


def test_kl_in_the_reward_comes_off_a_response_s_score():
  data = step_data()
  kl = [sum(data.old_kl[i, : t.tokens]) for i, t in enumerate(TURNS)]
  want = loop_grpo(data, scores=data.scores - 0.3 * np.array(kl))
  got = credit('grpo', data, kl_in='reward', kl_coef=0.3)['advantages']
  assert_close(got, spread(want, data.response_mask))
  free = credit('grpo', data._replace(old_kl=None), kl_in='reward', kl_coef=0.0)
  assert_same(free, credit('grpo', data))


# Credit of the teachers' sides.


def gap_of(data, i):
  """Gaps of a row's tokens; 0 where the teacher saw nothing."""
  length = data.response_mask[i].sum()
  gaps = data.teacher_logprobs[i, :length] - data.old_logprobs[i, :length]
  return gaps if data.taught[i] else np.zeros(length)


def loop_rlsd(data, advantages, lam, clip=0.2):
  """[B, R] from [B] advantages."""
  out = np.zeros(data.response_mask.shape)
  for i, advantage in enumerate(advantages):
    for t, gap in enumerate(gap_of(data, i)):
      weight = min(max(math.exp(np.sign(advantage) * gap), 1 - clip), 1 + clip)
      out[i, t] = advantage * ((1 - lam) + lam * weight)
  return out


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x)))


def success_rate(data, i):
  outcomes = {data.trajectory_ids[j]: data.successes[j] for j in peers(data, i)}
  return sum(outcomes.values()) / len(outcomes)


def loop_agent_opsd(data, advantages, lam, band=0.2):
  out = np.zeros(len(advantages))
  for trajectory in set(data.trajectory_ids):
    rows = np.flatnonzero(data.trajectory_ids == trajectory)
    rows = sorted(rows, key=lambda i: data.turn_ids[i])
    prior = min(max(success_rate(data, rows[0]), 1e-4), 1 - 1e-4)
    logit, moves = math.log(prior / (1 - prior)), []
    for i in rows:
      before = sigmoid(logit)
      logit += sum(gap_of(data, i))
      moves.append(sigmoid(logit) - before)
    for i, move in zip(rows, moves):
      z = (move - np.mean(moves)) / (np.std(moves) + 1e-6)
      weight = np.clip(1 + band * np.sign(advantages[i]) * z, 1 - band, 1 + band)
      out[i] = advantages[i] * ((1 - lam) + lam * weight)
  return out


def loop_grsd(data, advantages, lam, clip=3.0):
  signal = np.zeros(len(advantages))
  for i in range(len(advantages)):
    signal[i] = math.exp(np.sign(advantages[i]) * np.mean(gap_of(data, i))) - 1
  out = np.array(advantages)
  for i in np.flatnonzero(data.taught):
    mean = np.mean([abs(signal[j]) for j in peers(data, i) if data.taught[j]])
    weight = 1 + lam * np.clip(signal[i] / (mean + 1e-6), -clip, clip)
    out[i] = advantages[i] * max(weight, 0.1)
  return out


def loop_adrs(data, eta, tau=2.0):
  """([B, R] rewards of tokens, [B] gates): of what the teacher liked in the step."""
  rows = np.flatnonzero(data.taught)
  said = {i: data.teacher_logprobs[i][data.response_mask[i]] for i in rows}
  every = np.concatenate(list(said.values()))
  overall = np.mean([said[i].mean() for i in rows])
  out, gates = np.zeros(data.response_mask.shape), np.zeros(len(data.scores))
  for i in rows:
    same = [j for j in peers(data, i) if data.taught[j]]
    alike = np.array([sigmoid(said[j].mean() - overall) for j in same])
    returns = data.scores[same]
    value = (alike @ returns) / alike.sum() - (1 - alike) @ returns / (1 - alike).sum()
    gates[i] = sigmoid(tau * value)
    for t, logprob in enumerate(said[i]):
      out[i, t] = eta * gates[i] * (logprob - every.mean()) / every.std(ddof=1)
  return out, gates


LOOPS = {'rlsd': loop_rlsd, 'agent-opsd': loop_agent_opsd, 'grsd': loop_grsd}


@pytest.mark.parametrize('step, lam', [(0, 0.5), (50, 0.25), (99, 0.005), (100, 0.0)])
def test_rlsd_credit_is_warmed_down_to_grpo(step, lam):
  data = step_data(step)
  got = credit('rlsd', data)
  assert_close(got['advantages'], loop_rlsd(data, loop_grpo(data), lam))
  assert_close(got['distill_scale'], lam / 0.5)
  moved = got['advantages'] != credit('grpo', data)['advantages']
  assert moved.any() == (lam > 0)


@pytest.mark.parametrize('name', ['agent-opsd', 'grsd'])
@pytest.mark.parametrize('mix', [0.5, 1.0])
def test_credit_of_whole_turns(name, mix):
  data = step_data()
  want = spread(LOOPS[name](data, loop_grpo(data), mix), data.response_mask)
  got = credit(name, data, credit_mix=mix)['advantages']
  assert_close(got, want, rtol=2e-5, atol=2e-6)  # Beliefs of 1e-4 divide by little.


@pytest.mark.parametrize('clip', [0.0, 0.4])
def test_opid_adds_the_gap(clip):
  data = step_data()
  want = spread(loop_grpo(data), data.response_mask)
  for i in range(len(want)):
    gaps = gap_of(data, i)
    want[i, : len(gaps)] += 0.3 * (np.clip(gaps, -clip, clip) if clip else gaps)
  got = credit('opid', data, gap_coef=0.3, gap_clip=clip)['advantages']
  assert_close(got, want)


@pytest.mark.parametrize('tau', [2.0, 0.5])
def test_adrs_rewards_tokens_before_advantages_are_estimated(tau):
  data = step_data()
  rewards, gates = loop_adrs(data, 0.3, tau)
  got = credit('adrs', data, shaping_coef=0.3, gate_scale=tau)
  want = loop_grpo(data, scores=data.scores + rewards.sum(1))
  assert_close(got['advantages'], spread(want, data.response_mask))
  assert_close(got['gate'], spread(gates, data.response_mask))
  # Where all did equally well the teacher's rewards are all there is.
  same = data.group_ids == 7
  assert (credit('grpo', data)['advantages'][same] == 0).all()
  assert np.abs(got['advantages'][same]).max() > 0.5


def test_adrs_rewards_are_placed_where_a_method_looks_at_tokens():
  data = step_data(step=0)
  rewards, _ = loop_adrs(data, 0.3)
  paid = rewards.copy()
  for i, turn in enumerate(TURNS):
    paid[i, turn.tokens - 1] += data.scores[i]
  got = credit('ppo+adrs', data, shaping_coef=0.3, gamma=0.9, gae_lambda=0.7)
  advantages = loop_gae(paid, data, 0.9, 0.7)
  assert_close(got['advantages'], loop_whiten(advantages, data.response_mask))
  got = credit('reinforce+++adrs', data, shaping_coef=0.3, gamma=0.9)
  returns = loop_gae(paid, data._replace(old_values=0 * data.old_values), 0.9, 1.0)
  assert_close(got['advantages'], loop_whiten(returns, data.response_mask))
  got = credit('gigpo+adrs', data, shaping_coef=0.3)
  shifted = data._replace(scores=data.scores + rewards.sum(1))
  states = [(t.place, t.visit) for t in TURNS]
  want = loop_gigpo(shifted, states)
  assert_close(got['advantages'], spread(want, data.response_mask))


@pytest.mark.parametrize('similarity', [0.0, 0.9])
def test_ucob_teaches_the_view_that_did_worse(similarity):
  data = step_data()
  states = [t.place if similarity else (t.place, t.visit) for t in TURNS]
  returns, want = loop_discounted(data, 0.95), np.zeros(len(TURNS))
  for i in np.flatnonzero(data.taught):
    views = {True: [], False: []}
    for j in peers(data, i):
      if states[j] == states[i]:
        views[bool(data.sees_skills[j])].append(returns[j])
    own = bool(data.sees_skills[i])
    if views[True] and views[False]:
      lead = np.mean(views[not own]) - np.mean(views[own])
      want[i] = min(lead / 2.0, 2.0) if lead > 0.5 else 0
  got = credit('ucob', data, anchor_similarity=similarity)
  assert_close(got['teaching'], want)
  assert_same(got['advantages'], credit('grpo', data)['advantages'])
  if not similarity:  # Both directions: 41's skills misled it, 70 lacked them.
    np.testing.assert_allclose(got['teaching'][[2, 5]], [0.4875, 2.0], rtol=1e-6)
  none = credit('ucob', data._replace(taught=np.zeros(len(TURNS), bool)))
  np.testing.assert_array_equal(none['teaching'], 0)


@pytest.mark.parametrize('name', [n for n in TEACHERS if n != 'ucob'])
def test_rows_without_a_lesson_keep_their_advantages(name):
  data = step_data()
  got, plain = credit(name, data), credit('grpo', data)['advantages']
  np.testing.assert_array_equal(got['teaching'], data.taught)
  # One compares the turns of an episode, the other pays some of a group.
  if name not in ('agent-opsd', 'adrs'):
    assert_same(got['advantages'][~data.taught], plain[~data.taught])
  nobody = data._replace(taught=np.zeros(len(TURNS), bool))
  got = credit(name, nobody)
  assert_same(got['advantages'], plain)
  np.testing.assert_array_equal(got['teaching'], 0)
  assert got['gate_mean'] == 0 and not got.get('gate', np.zeros(1)).any()


@pytest.mark.parametrize('teacher', LOOPS)
@pytest.mark.parametrize('gamma', [1.0, 0.8])
def test_teachers_of_rows_meet_advantages_of_tokens(teacher, gamma):
  """What reshaping the mean of a row adds to it is added to the row's tokens."""
  data = step_data()
  plain = credit('reinforce++', data, gamma=gamma)['advantages'].astype(float)
  means = plain.sum(1) / data.response_mask.sum(1)
  shaped = LOOPS[teacher](data, means, 0.5)
  shaped = shaped if shaped.ndim == 2 else spread(shaped, data.response_mask)
  want = np.where(data.response_mask, plain + shaped - means[:, None], 0)
  got = credit(f'reinforce+++{teacher}', data, gamma=gamma)['advantages']
  assert_close(got, want, rtol=2e-5, atol=2e-6)
  alone = data.response_mask.sum(1) == 1
  assert_close(got[alone], shaped[alone], rtol=2e-5)
  if gamma == 1:
    assert_close(got, shaped, rtol=2e-5)
    assert (np.sign(got) == np.sign(plain)).all()


@pytest.mark.parametrize('teacher', LOOPS)
def test_a_teacher_of_rows_meets_any_policy(teacher):
  data = step_data()
  states = [(t.place, t.visit) for t in TURNS]
  shaped = LOOPS[teacher](data, loop_gigpo(data, states), 0.5)
  shaped = shaped if shaped.ndim == 2 else spread(shaped, data.response_mask)
  got = credit(f'gigpo+{teacher}', data)['advantages']
  assert_close(got, shaped, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('policy', PLAIN_POLICIES)
def test_a_teacher_with_a_term_of_its_own_leaves_the_policy_s_credit(policy):
  data = step_data()
  want, changed = credit(policy, data), set()
  for teacher in TEACHERS:
    name, side = f'{policy}+{teacher}', ALGORITHMS[teacher].distillation
    if side.credit is side.rewards is None and name not in ALGORITHMS:
      got = credit(name, data)
      for field in {'advantages', 'value_targets'} & set(want):
        if (got[field] != want[field]).any():
          changed.add(name)
  assert not changed


# Gradients of the objective, per token.


def inputs_of(name, hyper, data, **changes):
  """What the learner hands over, on policy: None where it has nothing to hand."""
  row, taught = find(name), find(name).needs_teacher(hyper)
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


def test_policy_gradients():
  data = step_data()
  for name in ('grpo', 'dapo', 'rloo', 'gigpo', 'skill-grpo', 'ppo', 'reinforce++'):
    got, _ = gradient(name)
    assert_close(got, credit(name, data)['advantages'])
  tokens = data.response_mask.sum(1)
  got, inputs = gradient('gspo')
  want = inputs.advantages / (tokens[:, None] * len(tokens)) * tokens.sum()
  assert_close(got, want)
  got, inputs = gradient('dr-grpo')
  assert_close(got, inputs.advantages / WIDTH * tokens.sum())


def test_each_row_has_its_own_clips():
  data = step_data()
  moved = {'logprobs': data.old_logprobs + math.log(1.25)}
  up = lambda inputs: inputs.advantages > 0
  got, inputs = gradient('grpo', changes=moved)  # 1.25 is beyond 1.2, within 1.28.
  assert_close(got, np.where(up(inputs), 0, 1.25 * inputs.advantages))
  got, inputs = gradient('dapo', changes=moved)
  assert_close(got, 1.25 * inputs.advantages)


def test_gspo_has_one_ratio_for_a_response():
  data = step_data()
  tokens = data.response_mask.sum(1, keepdims=True)
  moved = np.random.default_rng(1).normal(0, 0.1, data.old_logprobs.shape)
  moved -= np.where(data.response_mask, moved, 0).sum(1, keepdims=True) / tokens
  share = tokens.sum() / tokens / len(tokens)
  for shift in (2e-4, 1e-3, -1e-3):  # Within the clips, beyond 4e-4, beyond 3e-4.
    live = {'logprobs': data.old_logprobs + moved + shift}
    got, inputs = gradient('gspo', changes=live)
    clipped = inputs.advantages * shift > (3e-4 * np.abs(inputs.advantages))
    assert_close(got, np.where(clipped, 0, math.exp(shift) * share * inputs.advantages))


def test_the_critic_learns_the_return():
  data = step_data()
  hyper = hyper_of('ppo', **BARE)
  inputs = inputs_of('ppo', hyper, data)
  (loss, _), grads = evaluate('ppo', hyper, inputs)
  tokens = data.response_mask.sum()
  beyond = np.where(
    data.response_mask, data.old_values - spread(data.scores, data.response_mask), 0
  )
  assert_close(grads['values'], 0.01 * beyond / tokens)
  policy = -inputs.advantages.sum() / tokens
  assert_close(loss, policy + 0.01 * 0.5 * (beyond**2).sum() / tokens)


def test_kl_in_the_reward_leaves_the_loss():
  data = step_data()
  got, inputs = gradient('grpo', kl_coef=0.3, kl_in='reward')
  assert_close(got, inputs.advantages)
  got, inputs = gradient('grpo', kl_coef=0.3)  # k3: 1 - exp(ref - current).
  away = np.where(data.response_mask, np.exp(data.ref_logprobs - data.old_logprobs), 1)
  assert_close(got, inputs.advantages - 0.3 * (1 - away))


COEF = 0.4


GATE_ORACLES = {  # Of gap and entropy.
  'gap': lambda d, h: sigmoid(5 * d),
  'entropy': lambda d, h: sigmoid(5 * h),
  'soft_or': lambda d, h: sigmoid(5 * (1 - (1 - np.minimum(h, 1)) * (1 - d))),
}
GATED = [
  ('sdar', form, gate)
  for form in hyperparameters.KEYS['distill_form'].allowed
  for gate in GATES
]


@pytest.mark.parametrize('name, form, gate', [*GATED, ('opsd-released', 'loss', 'gap')])
def test_sdar_gradient(name, form, gate):
  data = step_data()
  gap, mask = data.teacher_logprobs - data.old_logprobs, taught_tokens(data)
  want = np.where(mask, GATE_ORACLES[gate](gap, data.old_entropy), 0)
  got, inputs = gradient(name, distill_coef=COEF, distill_form=form, gate=gate)
  policy = 0 if name == 'opsd-released' else inputs.advantages
  assert_close(got, policy + COEF * want)
  assert_close(inputs.gate, want)
  assert_close(inputs.gate_mean, want[mask].mean())


@pytest.mark.parametrize('name', ['sdar', 'sdar-advantage'])
def test_sdar_off_the_policy(name):
  """A term looks at the live gap; an advantage at the old one, times the ratio."""
  data = step_data()
  moved = np.random.default_rng(1).uniform(-0.15, 0.15, data.old_logprobs.shape)
  live = data.old_logprobs + moved
  got, inputs = gradient(name, distill_coef=COEF, changes={'logprobs': live})
  if name == 'sdar':
    teacher = gate_of(data._replace(old_logprobs=live))
  else:
    teacher = np.exp(moved) * gate_of(data)
  assert_close(got, np.exp(moved) * inputs.advantages + COEF * teacher)


def test_sdar_centred_gradient():
  data = step_data()
  gate, mask = gate_of(data, clip=1.0), taught_tokens(data)
  assert (np.abs(data.teacher_logprobs - data.old_logprobs)[mask] > 1).any()
  got, inputs = gradient('sdar-centred', distill_coef=COEF)
  mean = gate[mask].mean()
  assert_close(got, inputs.advantages + COEF * np.where(mask, gate - mean, 0))
  assert_close(inputs.gate_mean, mean)


def test_sdar_centred_off_the_policy():
  """The live gap, and the ratio up to 2."""
  data = step_data()
  moved = np.random.default_rng(1).normal(0, 0.8, data.old_logprobs.shape)
  live = data.old_logprobs + moved
  got, inputs = gradient(
    'sdar-centred', distill_coef=COEF, policy_coef=0.0, changes={'logprobs': live}
  )
  gate = gate_of(data._replace(old_logprobs=live), clip=1.0)
  ratio = np.minimum(np.exp(moved), 2)
  want = np.where(taught_tokens(data), COEF * ratio * (gate - inputs.gate_mean), 0)
  assert_close(got, want)
  assert (np.exp(moved)[taught_tokens(data)] > 2).any()


@pytest.mark.parametrize('name', ['opsd-sampled', 'grpo+opsd-sampled'])
def test_sampled_opsd_credits_the_gap_both_ways(name):
  data = step_data()
  gap = np.where(taught_tokens(data), data.teacher_logprobs - data.old_logprobs, 0)
  for clip in (5.0, 0.4):
    got, inputs = gradient(name, distill_coef=COEF, gap_clip=clip)
    policy = inputs.advantages if name.startswith('grpo') else 0
    assert_close(got, policy + COEF * np.clip(gap, -clip, clip))


def test_the_released_grpo_opsd_has_no_teacher():
  data = step_data()
  other = data._replace(teacher_logprobs=data.teacher_logprobs[::-1] - 3.0)
  got, inputs = gradient('grpo+opsd-released', data, distill_coef=COEF)
  assert_close(got, inputs.advantages + COEF / 2 * taught_tokens(data))
  assert_same(gradient('grpo+opsd-released', other, distill_coef=COEF)[0], got)
  real, _ = gradient('grpo+opsd-sampled', data, distill_coef=COEF)
  changed, _ = gradient('grpo+opsd-sampled', other, distill_coef=COEF)
  assert (real != changed)[taught_tokens(data)].all()


def test_skill_sd_gradient_by_differences():
  data = step_data(step=75)  # Three quarters of the way down.
  moved = np.random.default_rng(2).normal(0, 0.3, data.old_logprobs.shape)
  live = data.old_logprobs + moved

  def loss(logprobs):
    lead = logprobs - data.teacher_logprobs
    ratio = np.exp(np.minimum(logprobs - data.old_logprobs, 10))
    return ratio * (np.exp(np.minimum(-lead, 20)) - 1 + lead)

  for current, policy_coef in ((data.old_logprobs, 1.0), (live, 0.0)):
    slope = (loss(current + 1e-5) - loss(current - 1e-5)) / 2e-5
    changes = {'logprobs': current}
    settings = {'distill_coef': COEF, 'policy_coef': policy_coef}
    got, inputs = gradient('skill-sd', data, changes, **settings)
    want = policy_coef * inputs.advantages - np.where(
      taught_tokens(data), COEF / 4 * slope, 0
    )
    assert_close(got, want, rtol=1e-5)


def test_ucob_gradient():
  data = step_data()
  got, inputs = gradient('ucob', distill_coef=COEF)
  assert set(inputs.teaching) >= {0, 2}
  weights = inputs.teaching[:, None] * np.where(data.action_mask, 2, 1)
  assert_close(got, inputs.advantages + COEF * weights * gate_of(data))
  got, _ = gradient('ucob', distill_coef=COEF, action_weight=1.0)
  plain = inputs.teaching[:, None] * gate_of(data)
  assert_close(got, inputs.advantages + COEF * plain)


@pytest.mark.parametrize('step, same', [(0, False), (99, False), (100, True)])
def test_rlsd_as_released_is_grpo_from_iteration_100_of_150(step, same):
  data = step_data(step=step)
  assert find('rlsd').needs_teacher(hyper_of('rlsd'))  # Its pass is paid to the end.
  rlsd, grpo = (credit(name, data)['advantages'] for name in ('rlsd', 'grpo'))
  assert np.array_equal(rlsd, grpo) == same


@pytest.mark.parametrize('name', ['opsd', 'sdpg', 'sdpo', 'gigpo+sdpo'])
def test_divergences_are_weighted_at_taught_tokens(name):
  data = step_data(step=25)
  hyper = hyper_of(name, distill_coef=COEF, warmdown_steps=100, **BARE)
  inputs = inputs_of(name, hyper, data)
  (_, metrics), grads = evaluate(name, hyper, inputs)
  tokens = data.response_mask.sum()
  assert_close(grads['divergence'], 0.75 * COEF * taught_tokens(data) / tokens)
  policy = 0 if name in ('opsd', 'sdpo') else inputs.advantages
  assert_close(-grads['logprobs'] * tokens, policy)
  total = inputs.divergence[taught_tokens(data)].sum()
  assert_close(metrics['distill_loss'], (total, tokens))


@pytest.mark.parametrize(
  'name', ['sdar', 'sdar-advantage', 'sdar-centred', 'opsd-sampled', 'ucob', 'sdpg']
)
def test_schedule_and_weights_multiply_the_teacher_s_term(name):
  """Not the policy's; a weight of 0 is a row that was not taught."""
  data = step_data(taught=np.ones(len(TURNS), bool))
  hyper = hyper_of(name, distill_coef=COEF, **BARE)
  field = 'divergence' if name == 'sdpg' else 'logprobs'
  weights = np.linspace(0, 2, len(TURNS))

  def term(**changes):
    inputs = inputs_of(name, hyper, data, **changes)
    off = inputs._replace(distill_scale=0.0)
    with_it, without = (
      evaluate(name, hyper, i, quiet=True)[1][field] for i in (inputs, off)
    )
    return with_it - without

  ones = term(teaching=np.ones(len(TURNS)))
  assert (ones != 0)[data.response_mask].all()
  assert_close(term(teaching=weights), weights[:, None] * ones, atol=1e-15)
  quarter = term(teaching=np.ones(len(TURNS)), distill_scale=0.25)
  assert_close(quarter, 0.25 * ones, atol=1e-15)


@pytest.mark.parametrize('name', TEACHERS)
def test_metrics_count_taught_tokens(name):
  data = step_data()
  hyper = hyper_of(name)
  inputs = inputs_of(name, hyper, data)
  (_, metrics), _ = evaluate(name, hyper, inputs)
  mask = data.response_mask & (inputs.teaching != 0)[:, None]
  gap = data.teacher_logprobs - data.old_logprobs
  assert_close(metrics['gap'], (gap[mask].sum(), mask.sum()))
  assert_close(metrics['gap_positive'], ((gap[mask] > 0).sum(), mask.sum()))
  assert_close(metrics['taught'], (mask.sum(), data.response_mask.sum()))
  sums, counts = metrics['gap_by_turn']
  for turn in range(3):
    of_turn = mask & (data.turn_ids == turn)[:, None]
    assert_close((sums[turn], counts[turn]), (gap[of_turn].sum(), of_turn.sum()))


@pytest.mark.parametrize('name', [*TEACHERS, 'ppo+sdar-advantage'])
def test_a_coefficient_of_0_is_the_policy_alone_bit_for_bit(name):
  hyper = hyper_of(name, **{find(name).distillation.coef: 0.0})
  data = step_data(taught=None, teacher_logprobs=None)
  bases = {'none': 'grpo', 'half': 'skill-grpo'}
  base = 'ppo' if '+' in name else bases[ALGORITHMS[name].student_sees_skills]
  base = 'grpo' if name == 'grpo+opsd-released' else base
  assert_same(
    assign_credit(find(name), hyper, data), assign_credit(find(base), hyper, data)
  )
  inputs = inputs_of(name, hyper, data)
  got, want = evaluate(name, hyper, inputs), evaluate(base, hyper, inputs)
  assert got[0][1].keys() == want[0][1].keys()
  assert_same(got, want)


# What holds for all.


@pytest.mark.parametrize('name', CREDITS)
def test_rows_may_come_in_any_order(name):
  data = step_data(step=30)
  if hyper_of(name).statistics_over == 'trajectories':  # The first row speaks for all.
    data = data._replace(
      scores=data.scores + data.penalties, penalties=np.zeros(len(TURNS))
    )
  order = np.random.default_rng(3).permutation(len(TURNS))
  want, got = credit(name, data), credit(name, take(data, order))
  for field in ('advantages', 'teaching', 'value_targets'):
    if field in want:
      assert_close(got[field], want[field][order], rtol=1e-5, atol=1e-6)
  assert_close(got['gate_mean'], want['gate_mean'], rtol=1e-5)


POISON = {
  'old_logprobs': -np.inf,
  'ref_logprobs': np.inf,
  'teacher_logprobs': np.nan,
  'old_entropy': np.nan,
  'old_kl': np.nan,
  'old_values': np.inf,
  'logprobs': -np.inf,
  'entropy': np.nan,
  'values': np.nan,
  'divergence': np.inf,
  'advantages': np.nan,
  'value_targets': np.nan,
}


def poisoned(arrays, mask, fields=POISON):
  """With POISON where masked, as far as there are such fields."""
  there = {n: getattr(arrays, n, None) for n in fields}
  there = {n: v for n, v in there.items() if v is not None}
  return arrays._replace(**{n: np.where(mask, v, POISON[n]) for n, v in there.items()})


def spoilt(arrays, data):
  """Poisoned at masked tokens, and the teacher's word on rows without a lesson."""
  taught = poisoned(arrays, taught_tokens(data), ('teacher_logprobs', 'divergence'))
  return poisoned(taught, data.response_mask)


@pytest.mark.parametrize('name', CREDITS)
def test_credit_never_reads_masked_tokens_nor_rows_without_a_lesson(name):
  data = step_data(step=30)
  with np.errstate(invalid='ignore'):
    got = credit(name, spoilt(data, data))
  assert_same(got, credit(name, data))


@pytest.mark.parametrize('name', LOSSES)
def test_the_objective_never_reads_masked_tokens_nor_rows_without_a_lesson(name):
  data = step_data(step=30)
  mask, hyper = data.response_mask, hyper_of(name)
  inputs = inputs_of(name, hyper, data)
  want = evaluate(name, hyper, inputs)
  assert_same(evaluate(name, hyper, spoilt(inputs, data)), want)
  (loss, metrics), grads = want
  assert np.isfinite(loss)
  assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
  for field, values in grads.items():
    assert np.isfinite(values).all(), field
    np.testing.assert_array_equal(values[~mask], 0)
  assert (grads['logprobs'] != 0)[mask & data.taught[:, None]].any()


@pytest.mark.parametrize('name', CREDITS)
def test_padding_rows_change_nothing(name):
  """Whatever they hold: of a group that is there, an episode that is not."""
  data = step_data(step=30)
  want = credit(name, data)
  more = take(data, [*range(len(TURNS)), 0])
  for field, value in (
    ('row_mask', False),
    ('response_mask', False),
    ('trajectory_ids', 43),
    ('scores', np.nan),
    ('rewards', np.nan),
    ('penalties', np.nan),
  ):
    getattr(more, field)[-1] = value
  with np.errstate(invalid='ignore'):
    got = credit(name, poisoned(more, more.response_mask))
  for field, values in want.items():
    there = got[field][:-1] if values.ndim else got[field]
    assert_close(there, values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got['advantages'][-1], 0)


@pytest.mark.parametrize('gate', sorted(GATES))
@pytest.mark.parametrize('name', ['sdar-advantage', 'sdar-centred'])
def test_masked_entropies_are_never_read(name, gate):
  data, hyper = step_data(), hyper_of(name, gate=gate)
  with np.errstate(invalid='ignore'):
    poison = assign_credit(find(name), hyper, spoilt(data, data))
  assert_same(poison, assign_credit(find(name), hyper, data))
  inputs = inputs_of(name, hyper, data)
  got = evaluate(name, hyper, spoilt(inputs, data))
  assert_same(got, evaluate(name, hyper, inputs))


RELATIVE = ['grpo', 'dr-grpo', 'rloo', 'grpo-passk', 'gigpo', 'reinforce++-baseline']


@pytest.mark.parametrize('name', [*RELATIVE, *LOOPS, 'gigpo+grsd'])
def test_equal_scores_teach_nothing(name):
  data = without_loners(step_data())
  data = data._replace(
    scores=0.7 + 0.1 * data.group_ids,  # Numbers that a mean would round.
    rewards=np.zeros(len(data.scores)),
    penalties=np.zeros(len(data.scores)),
  )
  got, inputs = gradient(name, data)
  np.testing.assert_array_equal(inputs.advantages, 0)
  np.testing.assert_array_equal(got, 0)


PLAIN = {'dr-grpo': {}, 'rloo': {}, 'gigpo': {'divide_by_std': False}}
DIVIDED = ['grpo', 'grpo-passk', 'gigpo', 'ppo', 'ppo-kl-reward', 'reinforce++']


def ten_times(data):
  """A world that pays, and a critic and a KL that count, in tenths."""
  fields = ('scores', 'rewards', 'penalties', 'old_values', 'old_kl')
  return data._replace(**{name: 10 * getattr(data, name) for name in fields})


@pytest.mark.parametrize('name', [*DIVIDED, *LOOPS, 'opid'])
def test_the_unit_of_rewards_is_divided_out(name):
  data = without_loners(step_data())
  want, got = (credit(name, d)['advantages'] for d in (data, ten_times(data)))
  assert np.abs(want).max() > 0.5
  assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', PLAIN)
def test_the_unit_of_rewards_stays_without_a_deviation(name):
  data, settings = step_data(), PLAIN[name]
  want, got = (
    credit(name, d, **settings)['advantages'] for d in (data, ten_times(data))
  )
  assert np.abs(want).max() > 0.5
  assert_close(got, 10 * want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', CREDITS)
def test_single_members_are_finite(name):
  data = step_data()
  alone = take(data, [14])
  for few in (alone, take(data, [14, 0]), take(data, [0, 1])):
    for value in credit(name, few).values():
      assert np.isfinite(value).all()
  got = credit(name, alone)['advantages']
  np.testing.assert_array_equal(got[~alone.response_mask], 0)
