"""Gradients of every row's objective, per token, against loops over formulas."""

import math

import numpy as np
import pytest
from algorithm_cases import (
  BARE,
  TEACHERS,
  TURNS,
  WIDTH,
  assert_close,
  assert_same,
  credit,
  evaluate,
  gate_of,
  gradient,
  hyper_of,
  inputs_of,
  policy_of,
  sigmoid,
  step_data,
  taught_tokens,
)
from credit_loops import spread

from sdar_jax.methods.credit import assign_credit
from sdar_jax.methods.gates import GATES
from sdar_jax.methods.hyperparameters import KEYS
from sdar_jax.methods.table import find

COEF = 0.4


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


GATE_ORACLES = {  # Of gap and entropy.
  'gap': lambda d, h: sigmoid(5 * d),
  'entropy': lambda d, h: sigmoid(5 * h),
  'soft_or': lambda d, h: sigmoid(5 * (1 - (1 - np.minimum(h, 1)) * (1 - d))),
}
GATED = [
  ('sdar', form, gate) for form in KEYS['distill_form'].allowed for gate in GATES
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
  if hyper.warmdown_steps:  # The lesson is there still.
    late = evaluate(name, hyper, inputs._replace(distill_scale=0.0))[0][1]
    assert late['taught'] == metrics['taught']


def _may_be_0(name):
  """Whether a teacher's coefficient can be; a band of no width is refused."""
  return find(name).distillation.coef != 'credit_clip'


@pytest.mark.parametrize('name', [*filter(_may_be_0, TEACHERS), 'ppo+sdar-advantage'])
def test_a_coefficient_of_0_is_the_policy_alone_bit_for_bit(name):
  hyper = hyper_of(name, **{find(name).distillation.coef: 0.0})
  data = step_data(taught=None, teacher_logprobs=None)
  base = policy_of(name)
  assert_same(
    assign_credit(find(name), hyper, data), assign_credit(find(base), hyper, data)
  )
  inputs = inputs_of(name, hyper, data)
  got, want = evaluate(name, hyper, inputs), evaluate(base, hyper, inputs)
  assert got[0][1].keys() == want[0][1].keys()
  assert_same(got, want)
