import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_cases import assert_close, gradient, step_data, taught_tokens
from batches import make_batch

from sdar_jax.losses import variants, views


def loop_target(student, one, two):
  consensus = (one + two) / 2
  residual = max(0.0, math.log((math.exp(one) + math.exp(two)) / 2) - consensus)
  gaps = one - student, two - student
  agreed = abs(sum(gaps) / 2)
  size = (abs(gaps[0]) + abs(gaps[1])) / 2
  gate = agreed / (size + 1e-8) * agreed / (agreed + residual + 1e-8)
  return consensus + gate * residual


def test_the_target_and_its_credit_equal_a_loop():
  batch = make_batch(1, spread=0.5, padding_rows=1)
  mask = batch['response_mask']
  arrays = [batch[n].astype(float) for n in ('logprobs', 'teacher_logprobs', 'entropy')]
  arrays[2] = -arrays[2]
  want, credit = np.zeros(mask.shape), np.zeros(mask.shape)
  for place in zip(*np.nonzero(mask)):
    want[place] = loop_target(*(array[place] for array in arrays))
    credit[place] = np.clip(want[place] - arrays[0][place], -0.4, 0.4)
  poisoned = [np.where(mask, array, np.nan) for array in arrays]
  function = lambda *x: views.adaptive_views(*x, mask, gap_clip=0.4)
  with jax.enable_x64(True):
    got = views.adaptive_target(*map(jnp.asarray, poisoned), mask)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)
    for call in (function, jax.jit(function)):
      losses, pull = jax.vjp(call, *map(jnp.asarray, poisoned))
      grads = pull(jnp.ones_like(losses))
      np.testing.assert_allclose(grads[0], -credit, rtol=1e-7, atol=1e-10)
      np.testing.assert_array_equal(grads[1], 0)
      np.testing.assert_array_equal(grads[2], 0)


def test_views_that_agree_are_one_teacher():
  batch = make_batch(2)
  mask, names = batch['response_mask'], ('logprobs', 'teacher_logprobs')
  own, theirs = (batch[name] for name in names)
  got = views.adaptive_views(own, theirs, theirs, mask, gap_clip=math.inf)
  want = variants.opsd(own, theirs, mask, gap_clip=math.inf)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_target_lies_between_both_means_and_views_may_change_places():
  random = np.random.default_rng(0)
  student, one, two = -random.exponential(1.0, (3, 4, 5))
  mask = np.ones((4, 5), bool)
  got = np.asarray(views.adaptive_target(student, one, two, mask))
  swapped = np.asarray(views.adaptive_target(student, two, one, mask))
  np.testing.assert_allclose(got, swapped, rtol=1e-6)
  low, high = (one + two) / 2, np.logaddexp(one, two) - math.log(2)
  assert (got >= low - 1e-5).all() and (got <= high + 1e-5).all()


@pytest.mark.parametrize('wild', [1e4, -1e4])
def test_wild_views_are_finite(wild):
  mask, own = np.ones((1, 2), bool), np.full((1, 2), -1.0, np.float32)
  function = lambda x: views.adaptive_views(x, own + wild, own, mask, gap_clip=5.0)
  losses, pull = jax.vjp(function, own)
  assert np.isfinite(losses).all() and np.isfinite(pull(losses)[0]).all()


def test_avsd_has_no_reward_and_both_views():
  data = step_data()
  got, _ = gradient('avsd', data)
  want = np.zeros(got.shape)
  for place in zip(*np.nonzero(taught_tokens(data))):
    names = (data.old_logprobs, data.teacher_logprobs, data.contrast_logprobs)
    target = loop_target(*(float(array[place]) for array in names))
    want[place] = np.clip(target - data.old_logprobs[place], -5, 5)
  assert_close(got, want, rtol=1e-5)
