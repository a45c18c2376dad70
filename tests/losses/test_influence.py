import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_cases import (
  assert_close,
  gate_of,
  gradient,
  sigmoid,
  step_data,
  taught_tokens,
)
from batches import make_batch

from sdar_jax.losses import influence


def loop_law(values):
  """The asymmetric Laplace law of some numbers, one by one."""
  centre = float(np.median(values))
  low = [abs(u - centre) for u in values if u < centre]
  high = [abs(u - centre) for u in values if u >= centre]
  out = []
  for u in values:
    if u < centre:
      out.append(0.5 * math.exp((u - centre) / np.mean(low)))
    else:
      width = np.mean(high)
      out.append(1 - 0.5 * math.exp(-(u - centre) / width) if width else 0.5)
  return out


def loop_weights(gate, gap, advantages, ratio, mask):
  out = np.zeros(mask.shape)
  for i in range(len(mask)):
    places = np.flatnonzero(mask[i])
    if not len(places):
      continue
    effects = [advantages[i, t] * ratio[i, t] * gap[i, t] for t in places]
    law = dict(zip(places, loop_law(effects)))
    kept = {t for t in places if advantages[i, t] < 0 and gap[i, t] < 0}
    rest = [t for t in places if t not in kept]
    before = sum(gate[i, t] for t in rest)
    after = sum(gate[i, t] * law[t] for t in rest)
    for t in places:
      scale = 1.0 if t in kept else before / after * law[t]
      out[i, t] = gate[i, t] * scale
  return out


def arrays_of(seed, dtype='f8'):
  batch = make_batch(seed, rows=12, tokens=7, padding_rows=1, spread=0.6)
  mask, random = batch['response_mask'], np.random.default_rng(seed)
  gap = batch['teacher_logprobs'] - batch['logprobs']
  advantages = np.repeat(batch['advantages'][:, None], mask.shape[1], 1)
  gate = random.random(mask.shape)
  names = (gate, gap, advantages, batch['logprobs'], batch['old_logprobs'])
  return [np.where(mask, x, np.nan).astype(dtype) for x in names], mask


@pytest.mark.parametrize('seed', range(4))
def test_weights_equal_a_loop_and_keep_the_sum_of_a_turn(seed):
  arrays, mask = arrays_of(seed)
  gate, gap, advantages, logprobs, old = (np.where(mask, x, 0) for x in arrays)
  want = loop_weights(gate, gap, advantages, np.exp(logprobs - old), mask)
  with jax.enable_x64(True):
    for call in (influence.influence_weights, jax.jit(influence.influence_weights)):
      got = np.asarray(call(*map(jnp.asarray, arrays), mask))
      np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)
      np.testing.assert_allclose(got.sum(1), gate.sum(1), rtol=1e-10)


def test_the_law_rises_from_0_to_1_through_the_median():
  values = np.sort(np.random.default_rng(1).normal(0, 3, (1, 9)))
  got = np.asarray(influence.calibrated(values, np.ones((1, 9), bool)))[0]
  assert (np.diff(got) > 0).all() and got[4] == 0.5 and 0 < got[0] < got[8] < 1
  even = np.asarray(influence.calibrated(np.ones((1, 4)), np.ones((1, 4), bool)))
  np.testing.assert_array_equal(even, 0.5)


@pytest.mark.parametrize('scale', [0.0, 1e30, 1e-30])
def test_wild_influences_are_finite_and_keep_the_sum(scale):
  arrays, mask = arrays_of(3, 'f4')
  arrays[2] = arrays[2] * np.float32(scale)
  got = np.asarray(influence.influence_weights(*arrays, mask))
  assert np.isfinite(got).all() and (got >= 0).all()
  gate = np.where(mask, arrays[0], 0)
  np.testing.assert_allclose(got.sum(1), gate.sum(1), rtol=1e-4)
  if scale == 0:  # No objective, no preference.
    np.testing.assert_allclose(got, gate, rtol=1e-6)


def test_icsd_pushes_tokens_by_these_weights():
  data = step_data()
  got, inputs = gradient('icsd', data, distill_coef=0.3)
  taught, gap = taught_tokens(data), data.teacher_logprobs - data.old_logprobs
  gate, ones = gate_of(data), np.ones(taught.shape)
  weights = loop_weights(gate, gap, inputs.advantages, ones, taught)
  assert_close(got, inputs.advantages + 0.3 * weights)
  np.testing.assert_allclose(gate, np.where(taught, sigmoid(5 * gap), 0))
  assert np.abs(weights - gate).max() > 0.05
