"""Weights of the distillation term that are made of a gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch

from sdar_jax.losses import distill, masked, variants
from sdar_jax.methods import gates

WILD = np.array([[0.0, 1e4, -1e4, 3.0, -3.0, 0.1]])
ALL = np.ones((1, 6), bool)


def gate_of(gap):
  return gates.gap_gate(gap, gate_beta=5.0, gap_clip=0.0)


def test_no_gradient_goes_through_weights_of_gates():
  for function in (
    lambda x: variants.centred(x, ALL, x.mean()),
    lambda x: variants.ratio_weights(x, x, 0 * x, ALL, ratio_limit=2.0),
  ):
    grad = jax.grad(lambda x, function=function: function(x).sum())(jnp.asarray(WILD))
    np.testing.assert_array_equal(grad, 0)


def test_centred_gates_of_microbatches_are_those_of_the_minibatch():
  batch = make_batch(1, padding_rows=1, spread=1.0)
  mask, logprobs = batch['response_mask'], batch['logprobs']
  gap = np.where(mask, batch['teacher_logprobs'] - logprobs, 0)
  gate = np.where(mask, gate_of(gap), np.nan)
  tokens = masked.normaliser_of(mask, 'token-mean')
  parts = (slice(0, 3), slice(3, 8))
  mean = sum(
    masked.aggregate(gate[part], mask[part], tokens, 'token-mean') for part in parts
  )
  np.testing.assert_allclose(mean, gate[mask].mean(), rtol=1e-6)
  centred = np.concatenate(
    [variants.centred(gate[part], mask[part], mean) for part in parts]
  )
  np.testing.assert_allclose(centred[mask], gate[mask] - gate[mask].mean(), atol=1e-6)
  np.testing.assert_array_equal(centred[~mask], 0)
  # The mean gradient by log-prob is gone, so nothing is pushed up as a whole.
  loss = lambda x: distill.weighted(x, batch['teacher_logprobs'], centred, mask).sum()
  np.testing.assert_allclose(jax.grad(loss)(logprobs).sum(), 0, atol=1e-5)


def test_equal_gates_are_centred_to_nothing():
  gate = jnp.full((2, 3), 0.7)
  mean = masked.aggregate(gate, np.ones((2, 3), bool), 6, 'token-mean')
  got = variants.centred(gate, np.ones((2, 3), bool), mean)
  np.testing.assert_allclose(got, 0, atol=1e-7)


def test_ratio_weights_equal_a_loop():
  batch = make_batch(2, spread=1.0)
  mask = batch['response_mask']
  new, old = (batch[name].astype(float) for name in ('logprobs', 'old_logprobs'))
  weights = batch['entropy'].astype(float)
  want = np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    want[i, t] = weights[i, t] * min(np.exp(new[i, t] - old[i, t]), 1.5)
  poison = [np.where(mask, array, np.nan) for array in (weights, new, old)]
  function = lambda *arrays: variants.ratio_weights(*arrays, mask, ratio_limit=1.5)
  with jax.enable_x64(True):
    for call in (function, jax.jit(function)):
      np.testing.assert_allclose(call(*poison), want, rtol=1e-12)
  assert (want[mask] < weights[mask]).any() and (want[mask] > weights[mask]).any()


def test_ratio_one_changes_no_bit_and_wild_ratios_are_finite():
  batch = make_batch(3)
  mask, old = batch['response_mask'], batch['old_logprobs']
  weights = np.where(mask, batch['entropy'], 0)
  got = variants.ratio_weights(weights, old, old, mask, ratio_limit=2.0)
  np.testing.assert_array_equal(got, weights)
  got = variants.ratio_weights(np.ones((1, 6)), WILD, 0 * WILD, ALL, ratio_limit=2.0)
  np.testing.assert_allclose(got[0, :3], [1, 2, 0], rtol=1e-6)


@pytest.mark.parametrize('limit', [1.2, 1e6])
def test_the_ratio_makes_the_gradient_the_current_policys(limit):
  """E_old[ratio g grad log pi] = E_pi[g grad log pi]: summed over a vocabulary."""
  rng = np.random.default_rng(4)
  logits, old, teacher = rng.standard_normal((3, 1, 7))
  mask = np.ones((1, 7), bool)
  with jax.enable_x64(True):
    old = jax.nn.log_softmax(jnp.asarray(old))
    teacher = jax.nn.log_softmax(jnp.asarray(teacher))

    def surrogate(logits, on_policy):
      logp = jax.nn.log_softmax(logits)
      gap = distill.gap(logp, teacher, mask)
      gate = gate_of(gap)
      if not on_policy:
        gate = variants.ratio_weights(gate, logp, old, mask, ratio_limit=limit)
      measure = jax.lax.stop_gradient(jnp.exp(logp if on_policy else old))
      return jnp.sum(measure * distill.weighted(logp, teacher, gate, mask))

    grads = [jax.grad(surrogate)(jnp.asarray(logits), on) for on in (True, False)]
  far = np.max(np.abs(grads[0] - grads[1]))
  assert far < 1e-12 if limit > 100 else far > 1e-3
