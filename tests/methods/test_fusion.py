"""UniOPSD's credit against a loop, and what its two estimates hold to."""

import itertools
import math

import numpy as np
import pytest
from algorithm_cases import TURNS, assert_close, credit, hyper_of, step_data
from credit_loops import loop_grpo, spread

from sdar_jax.advantages import fusion
from sdar_jax.methods.credit import remembered
from sdar_jax.methods.table import find

AGREEING = {'agreement': 0.6, 'error': 0.05}


def lower_median(values):
  values = sorted(values)
  return values[(len(values) - 1) // 2]


def deviation(values):
  mean = sum(values) / len(values)
  return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def discounted(data, i, gamma=0.95):
  later = [
    (data.turn_ids[j] - data.turn_ids[i], data.rewards[j])
    for j in range(len(TURNS))
    if data.trajectory_ids[j] == data.trajectory_ids[i]
    and data.turn_ids[j] >= data.turn_ids[i]
  ]
  return sum(gamma**k * reward for k, reward in later) - data.penalties[i]


def two_estimates(data):
  """S, O, p and q of each row, row by row."""
  count = len(TURNS)
  state = [(data.group_ids[i], data.observations[i]) for i in range(count)]
  alike = [[j for j in range(count) if state[j] == state[i]] for i in range(count)]
  returns = [discounted(data, i) for i in range(count)]
  less = lambda values, i: values[i] - sum(values[j] for j in alike[i]) / len(alike[i])
  own = [less(returns, i) for i in range(count)]
  gaps = []
  for i in range(count):
    size, hears = data.response_mask[i].sum(), data.taught[i] and not data.successes[i]
    moved = data.teacher_logprobs[i, :size] - data.old_logprobs[i, :size]
    gaps.append([float(g) if hears else 0.0 for g in moved])
  means = [sum(g) / len(g) for g in gaps]
  raw = [less(means, i) for i in range(count)]
  asked = [i for i in range(count) if any(gaps[i])]
  size = deviation([raw[i] for i in asked])
  scale = deviation([own[i] for i in asked]) / (size + 1e-6)
  p, q = [0.0] * count, [0.0] * count
  for i in range(count):
    variance = deviation([returns[j] for j in alike[i]]) ** 2 if alike[i][1:] else 0.0
    if variance > 1e-12:
      p[i] = len(alike[i]) / max(variance, 1e-6)
    if i in asked:
      spread_of = sum((g - means[i]) ** 2 for g in gaps[i]) / len(gaps[i])
      q[i] = 1 / max(spread_of / len(gaps[i]) * scale**2, 1e-6)
  return own, [scale * r for r in raw], p, q, gaps


def loop_uniopsd(data, advantages, rho, mix=0.5, clip=0.2, u=0.5):
  own, teacher, p, q, gaps = two_estimates(data)
  star = u * (u - rho**2) / (u * u - 2 * u * rho**2 + rho**2)
  both = [i for i in range(len(own)) if p[i] and q[i]]
  p_typical, q_typical = (lower_median([x[i] for i in both]) for x in (p, q))
  out = np.zeros(data.response_mask.shape)
  for i, advantage in enumerate(advantages):
    if not q[i] or rho == 0:
      c = 1.0
    elif not p[i]:
      c = star
    else:
      mine = star / (1 - star) * p[i] / p_typical
      c = mine / (mine + q[i] / q_typical)
    value = c * own[i] + (1 - c) * teacher[i]
    for t, gap in enumerate(gaps[i]):
      bent = math.exp(math.copysign(1, value) * gap if value else 0.0)
      weight = 1 - mix + mix * min(max(bent, 1 - clip), 1 + clip)
      out[i, t] = advantage + value * weight
  return out


@pytest.mark.parametrize(
  'memory, rho',
  [({}, 0.0), (AGREEING, 0.6 - 2.33 * 0.05), ({'agreement': -0.4, 'error': 0.1}, 0.0)],
)
def test_fused_credit_equals_a_loop(memory, rho):
  data = step_data(memory=memory)
  want = loop_uniopsd(data, loop_grpo(data, divide=False), rho)
  assert_close(credit('uniopsd', data)['advantages'], want, rtol=1e-5, atol=1e-6)


def test_the_step_has_every_kind_of_turn():
  own, _, p, q, _ = two_estimates(step_data())
  kinds = {(bool(a), bool(b)) for a, b in zip(p, q)}
  assert len(kinds) == 4 and any(own)


def test_a_teacher_that_never_agreed_only_weighs_tokens():
  data = step_data()
  flat = step_data(step=100)  # Warmed down: a turn's tokens count alike.
  gigpo = credit('gigpo', data, divide_by_std=False)['advantages']
  assert_close(credit('uniopsd', flat)['advantages'], gigpo, rtol=1e-5, atol=1e-6)
  assert np.abs(credit('uniopsd', data)['advantages'] - gigpo).max() > 1e-2
  heard = credit('uniopsd', flat._replace(memory=AGREEING))['advantages']
  assert np.abs(heard - gigpo).max() > 1e-2


def test_solved_episodes_keep_what_gigpo_gives_them():
  data = step_data(memory=AGREEING)
  episodes = spread(loop_grpo(data, divide=False), data.response_mask)
  got = credit('uniopsd', data)['advantages'] - episodes
  own = np.asarray(two_estimates(data)[0])[:, None]
  solved = data.successes[:, None] & data.response_mask
  np.testing.assert_allclose(
    got[solved], np.broadcast_to(own, got.shape)[solved], atol=1e-5
  )


@pytest.mark.parametrize('u', [0.2, 0.5, 1.0])
def test_trust_falls_from_1_to_0_as_the_estimates_agree(u):
  assert fusion.trust(0.0, u) == fusion.trust(-0.7, u) == 1
  values = [fusion.trust(rho, u) for rho in np.linspace(0, math.sqrt(u) - 1e-3, 9)]
  assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))
  if u < 1:
    assert values[-1] < 0.05 and 0 <= fusion.trust(1.0, u) < 1e-4


def test_agreement_is_averaged_over_steps_and_its_error_shrinks_with_rows():
  hyper, row = hyper_of('uniopsd'), find('uniopsd')
  own, teacher, p, q, _ = two_estimates(step_data())
  both = [i for i in range(len(own)) if p[i] and q[i]]
  now = np.corrcoef([own[i] for i in both], [teacher[i] for i in both])[0, 1]
  first = remembered(row, hyper, step_data())
  assert_close(first['agreement'], now)
  assert_close(first['error'], 1 / math.sqrt(len(both) * 10))
  later = remembered(row, hyper, step_data(memory=AGREEING))
  assert_close(later['agreement'], 0.9 * 0.6 + 0.1 * now)
  nobody = step_data(memory=AGREEING, taught=np.zeros(len(TURNS), bool))
  assert remembered(row, hyper, nobody) == AGREEING
