import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sdar_jax.losses import distill, gates, masked

WILD = np.array([[0.0, 1e4, -1e4, 3.0, -3.0, 0.1]])
ALL = np.ones((1, 6), bool)


def both(function, *arrays):
  """Results in float64, eager and jitted."""
  with jax.enable_x64(True):
    arrays = [jnp.asarray(array) for array in arrays]
    return [np.asarray(call(*arrays)) for call in (function, jax.jit(function))]


def test_each_gate_equals_a_loop(make_batch):
  batch = make_batch(0, spread=1.0)
  mask, entropy = batch['response_mask'], batch['entropy'].astype(float)
  gap = (batch['teacher_logprobs'] - batch['logprobs']).astype(float)
  oracles = {
    'entropy': lambda h, d: special.expit(2 * h),
    'soft_or': lambda h, d: special.expit(2 * (1 - (1 - h) * (1 - d))),
    'clipped': lambda h, d: special.expit(2 * min(max(d, -0.5), 0.5)),
  }
  functions = {
    'entropy': lambda h, d: gates.entropy_gate(h, mask, gate_beta=2.0),
    'soft_or': lambda h, d: gates.soft_or_gate(h, d, mask, gate_beta=2.0),
    'clipped': lambda h, d: gates.clipped_gate(
      jnp.where(mask, d, 0), gate_beta=2.0, gap_clip=0.5
    ),
  }
  poison = [np.where(mask, array, np.nan) for array in (entropy, gap)]
  for name, oracle in oracles.items():
    want = np.full(mask.shape, 0.5)
    for i, t in zip(*np.nonzero(mask)):
      want[i, t] = oracle(entropy[i, t], gap[i, t])
    for got in both(functions[name], *poison):
      np.testing.assert_allclose(got, want, rtol=1e-12, err_msg=name)


def test_soft_or_rises_with_the_gap_only_below_one_nat():
  ones = np.ones((1, 2), bool)
  gap = np.array([[-1.0, 1.0]])
  for entropy, order in ((0.0, 1), (0.5, 1), (1.0, 0), (2.0, -1)):
    low, high = np.asarray(
      gates.soft_or_gate(np.full((1, 2), entropy), gap, ones, gate_beta=1.0)
    )[0]
    assert np.sign(high - low) == order
  at_zero = gates.soft_or_gate(np.zeros((1, 2)), gap, ones, gate_beta=5.0)
  np.testing.assert_array_equal(at_zero, distill.gate(jnp.asarray(gap), 5.0))


def test_wild_gaps_give_finite_gates_within_their_bounds():
  values = {
    'entropy': gates.entropy_gate(np.abs(WILD), ALL, gate_beta=5.0),
    'soft_or': gates.soft_or_gate(np.full((1, 6), 0.5), WILD, ALL, gate_beta=5.0),
    'clipped': gates.clipped_gate(WILD, gate_beta=5.0, gap_clip=0.2),
  }
  for name, value in values.items():
    assert np.isfinite(value).all() and (value >= 0).all() and (value <= 1).all(), name
  clipped = np.asarray(values['clipped'])[0]
  np.testing.assert_allclose(clipped[[1, 2]], special.expit([1.0, -1.0]), rtol=1e-6)


def test_no_gradient_goes_through_a_gate():
  functions = (
    lambda x: gates.entropy_gate(x, ALL, gate_beta=5.0),
    lambda x: gates.soft_or_gate(x, x, ALL, gate_beta=5.0),
    lambda x: gates.clipped_gate(x, gate_beta=5.0, gap_clip=1.0),
    lambda x: gates.centred_gate(x, ALL, x.mean()),
    lambda x: distill.ratio_weights(x, x, 0 * x, ALL, ratio_limit=2.0),
  )
  for function in functions:
    grad = jax.grad(lambda x, function=function: function(x).sum())(jnp.asarray(WILD))
    np.testing.assert_array_equal(grad, 0)


def test_centred_gates_of_microbatches_are_those_of_the_minibatch(make_batch):
  batch = make_batch(1, padding_rows=1, spread=1.0)
  mask, logprobs = batch['response_mask'], batch['logprobs']
  gap = np.where(mask, batch['teacher_logprobs'] - logprobs, 0)
  gate = np.where(mask, distill.gate(jnp.asarray(gap), 5.0), np.nan)
  tokens = masked.normaliser_of(mask, 'token-mean')
  parts = (slice(0, 3), slice(3, 8))
  mean = sum(
    masked.aggregate(gate[part], mask[part], tokens, 'token-mean') for part in parts
  )
  np.testing.assert_allclose(mean, gate[mask].mean(), rtol=1e-6)
  centred = np.concatenate(
    [gates.centred_gate(gate[part], mask[part], mean) for part in parts]
  )
  np.testing.assert_allclose(centred[mask], gate[mask] - gate[mask].mean(), atol=1e-6)
  np.testing.assert_array_equal(centred[~mask], 0)
  # The mean gradient by log-prob is gone, so nothing is pushed up as a whole.
  loss = lambda x: distill.weighted(x, batch['teacher_logprobs'], centred, mask).sum()
  np.testing.assert_allclose(jax.grad(loss)(logprobs).sum(), 0, atol=1e-5)


def test_equal_gates_are_centred_to_nothing():
  gate = jnp.full((2, 3), 0.7)
  mean = masked.aggregate(gate, np.ones((2, 3), bool), 6, 'token-mean')
  got = gates.centred_gate(gate, np.ones((2, 3), bool), mean)
  np.testing.assert_allclose(got, 0, atol=1e-7)


def test_ratio_weights_equal_a_loop(make_batch):
  batch = make_batch(2, spread=1.0)
  mask = batch['response_mask']
  new, old = (batch[name].astype(float) for name in ('logprobs', 'old_logprobs'))
  weights = batch['entropy'].astype(float)
  want = np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    want[i, t] = weights[i, t] * min(np.exp(new[i, t] - old[i, t]), 1.5)
  poison = [np.where(mask, array, np.nan) for array in (weights, new, old)]
  function = lambda *arrays: distill.ratio_weights(*arrays, mask, ratio_limit=1.5)
  for got in both(function, *poison):
    np.testing.assert_allclose(got, want, rtol=1e-12)
  assert (want[mask] < weights[mask]).any() and (want[mask] > weights[mask]).any()


def test_ratio_one_changes_no_bit_and_wild_ratios_are_finite(make_batch):
  batch = make_batch(3)
  mask, old = batch['response_mask'], batch['old_logprobs']
  weights = np.where(mask, batch['entropy'], 0)
  got = distill.ratio_weights(weights, old, old, mask, ratio_limit=2.0)
  np.testing.assert_array_equal(got, weights)
  got = distill.ratio_weights(np.ones((1, 6)), WILD, 0 * WILD, ALL, ratio_limit=2.0)
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
      gate = distill.gate(distill.gap(logp, teacher, mask), 5.0)
      if not on_policy:
        gate = distill.ratio_weights(gate, logp, old, mask, ratio_limit=limit)
      measure = jax.lax.stop_gradient(jnp.exp(logp if on_policy else old))
      return jnp.sum(measure * distill.weighted(logp, teacher, gate, mask))

    grads = [jax.grad(surrogate)(jnp.asarray(logits), on) for on in (True, False)]
  far = np.max(np.abs(grads[0] - grads[1]))
  assert far < 1e-12 if limit > 100 else far > 1e-3
