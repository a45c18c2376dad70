import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokens
from scipy import special

from sdar_jax.losses import distill, masked
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import LossConfig

WILD = np.array([[0.0, 1e4, -1e4, 3.0, -3.0, 0.1]])
ALL = np.ones((1, 6), bool)


def both(function, *arrays):
  """Results in float64, eager and jitted."""
  with jax.enable_x64(True):
    arrays = [jnp.asarray(array) for array in arrays]
    return [np.asarray(call(*arrays)) for call in (function, jax.jit(function))]


BETA, CLIP = 2.0, 0.5
HYPER = LossConfig(gate_beta=BETA, gap_clip=CLIP)
ORACLES = {  # Of one token's gap and entropy.
  'gap': lambda d, h: special.expit(BETA * min(max(d, -CLIP), CLIP)),
  'entropy': lambda d, h: special.expit(BETA * h),
  'soft_or': lambda d, h: special.expit(
    BETA * (1 - (1 - min(h, 1)) * (1 - min(max(d, -CLIP), CLIP)))
  ),
}


def of(gap, entropy, name, hyper=HYPER):
  inputs = gates.GateInputs(gap, entropy, None, None, None)
  return gates.apply(gates.find(name), inputs, hyper)


def test_each_gate_has_an_oracle():
  assert ORACLES.keys() == gates.GATES.keys()
  with pytest.raises(ValueError, match=r"^gate='hard': must be [^\n]*'gap'"):
    gates.find('hard')


@pytest.mark.parametrize('name', gates.GATES)
def test_a_gate_equals_a_loop_on_host_and_device(name):
  gap = np.random.default_rng(0).normal(0, 1, (4, 6))
  entropy = np.random.default_rng(1).uniform(0, 2, (4, 6))
  want = np.vectorize(ORACLES[name])(gap, entropy)
  host = of(gap, entropy, name)
  assert isinstance(host, np.ndarray)
  for got in (host, *both(lambda *a: of(*a, name), gap, entropy)):
    np.testing.assert_allclose(got, want, rtol=1e-12)
  for kind in (np.asarray, jnp.asarray):
    low = of(kind(gap.astype('f4')), kind(entropy.astype('f4')), name)
    assert low.dtype == 'float32'
    np.testing.assert_allclose(low, want, rtol=1e-5)


def test_a_gate_reads_what_its_signature_names():
  assert gates.fields(gates.soft_or_gate) == ('gap', 'entropy')
  assert gates.keys(gates.soft_or_gate) == ('gate_beta', 'gap_clip')
  assert gates.fields(gates.entropy_gate) == ('entropy',)
  assert gates.keys(gates.entropy_gate) == ('gate_beta',)


def test_soft_or_rises_with_the_gap_below_one_nat_and_ignores_it_beyond():
  gap = np.array([[-1.0, 1.0]])
  for entropy, order in ((0.0, 1), (0.5, 1), (1.0, 0), (2.0, 0)):
    low, high = of(gap, np.full((1, 2), entropy), 'soft_or', LossConfig())[0]
    assert np.sign(high - low) == order
  at_zero = of(gap, np.zeros((1, 2)), 'soft_or', LossConfig())
  np.testing.assert_array_equal(at_zero, of(gap, None, 'gap', LossConfig()))


@pytest.mark.parametrize('name', gates.GATES)
@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray], ids=['host', 'device'])
def test_wild_gaps_give_finite_gates_within_their_bounds(name, kind):
  for hyper in (LossConfig(gap_clip=0.2), LossConfig()):
    got = of(kind(WILD), kind(np.abs(WILD)), name, hyper)
    assert np.isfinite(got).all() and (got >= 0).all() and (got <= 1).all()
  clipped = np.asarray(of(kind(WILD), None, 'gap', LossConfig(gap_clip=0.2)))[0]
  np.testing.assert_allclose(clipped[[1, 2]], special.expit([1.0, -1.0]), rtol=1e-6)


@pytest.mark.parametrize('name', gates.GATES)
def test_no_gradient_goes_through_a_gate(make_batch, name):
  batch = make_batch(0)
  mask, teacher = batch['response_mask'], batch['teacher_logprobs']
  names = ('logprobs', 'entropy')
  arrays = tuple(batch[name] for name in names)

  def scalar(logprobs, entropy):
    arrays = {'entropy': entropy, 'teacher_logprobs': teacher, 'old_logprobs': teacher}
    run = tokens.objective_of('sdar', mask, arrays, distill_coef=1.0, gate=name)
    return run(logprobs)[0]

  by_logprobs, by_entropy = jax.grad(scalar, argnums=(0, 1))(*arrays)
  np.testing.assert_array_equal(by_entropy, 0)
  gap = np.where(mask, teacher - arrays[0], 0)
  want = -of(gap, arrays[1], name, LossConfig()) * mask / mask.sum()
  np.testing.assert_allclose(by_logprobs, want, rtol=1e-5, atol=1e-9)


def test_no_gradient_goes_through_weights_of_gates():
  for function in (
    lambda x: distill.centred(x, ALL, x.mean()),
    lambda x: distill.ratio_weights(x, x, 0 * x, ALL, ratio_limit=2.0),
  ):
    grad = jax.grad(lambda x, function=function: function(x).sum())(jnp.asarray(WILD))
    np.testing.assert_array_equal(grad, 0)


def test_centred_gates_of_microbatches_are_those_of_the_minibatch(make_batch):
  batch = make_batch(1, padding_rows=1, spread=1.0)
  mask, logprobs = batch['response_mask'], batch['logprobs']
  gap = np.where(mask, batch['teacher_logprobs'] - logprobs, 0)
  gate = np.where(mask, of(gap, None, 'gap', LossConfig()), np.nan)
  tokens = masked.normaliser_of(mask, 'token-mean')
  parts = (slice(0, 3), slice(3, 8))
  mean = sum(
    masked.aggregate(gate[part], mask[part], tokens, 'token-mean') for part in parts
  )
  np.testing.assert_allclose(mean, gate[mask].mean(), rtol=1e-6)
  centred = np.concatenate(
    [distill.centred(gate[part], mask[part], mean) for part in parts]
  )
  np.testing.assert_allclose(centred[mask], gate[mask] - gate[mask].mean(), atol=1e-6)
  np.testing.assert_array_equal(centred[~mask], 0)
  # The mean gradient by log-prob is gone, so nothing is pushed up as a whole.
  loss = lambda x: distill.weighted(x, batch['teacher_logprobs'], centred, mask).sum()
  np.testing.assert_allclose(jax.grad(loss)(logprobs).sum(), 0, atol=1e-5)


def test_equal_gates_are_centred_to_nothing():
  gate = jnp.full((2, 3), 0.7)
  mean = masked.aggregate(gate, np.ones((2, 3), bool), 6, 'token-mean')
  got = distill.centred(gate, np.ones((2, 3), bool), mean)
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
      gap = distill.gap(logp, teacher, mask)
      gate = of(gap, None, 'gap', LossConfig())
      if not on_policy:
        gate = distill.ratio_weights(gate, logp, old, mask, ratio_limit=limit)
      measure = jax.lax.stop_gradient(jnp.exp(logp if on_policy else old))
      return jnp.sum(measure * distill.weighted(logp, teacher, gate, mask))

    grads = [jax.grad(surrogate)(jnp.asarray(logits), on) for on in (True, False)]
  far = np.max(np.abs(grads[0] - grads[1]))
  assert far < 1e-12 if limit > 100 else far > 1e-3
