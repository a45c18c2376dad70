import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokens
from batches import make_batch
from scipy import special

from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import Hyperparameters

WILD = np.array([[0.0, 1e4, -1e4, 3.0, -3.0, 0.1]])


def both(function, *arrays):
  """Results in float64, eager and jitted."""
  with jax.enable_x64(True):
    arrays = [jnp.asarray(array) for array in arrays]
    return [np.asarray(call(*arrays)) for call in (function, jax.jit(function))]


BETA, CLIP = 2.0, 0.5
HYPER = Hyperparameters(gate_beta=BETA, gap_clip=CLIP)
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
  with pytest.raises(ValueError, match=r"^gate='nonesuch': must be [^\n]*'gap'"):
    gates.find('nonesuch')


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
    low, high = of(gap, np.full((1, 2), entropy), 'soft_or', Hyperparameters())[0]
    assert np.sign(high - low) == order
  at_zero = of(gap, np.zeros((1, 2)), 'soft_or', Hyperparameters())
  np.testing.assert_array_equal(at_zero, of(gap, None, 'gap', Hyperparameters()))


@pytest.mark.parametrize('name', gates.GATES)
@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray], ids=['host', 'device'])
def test_wild_gaps_give_finite_gates_within_their_bounds(name, kind):
  for hyper in (Hyperparameters(gap_clip=0.2), Hyperparameters()):
    got = of(kind(WILD), kind(np.abs(WILD)), name, hyper)
    assert np.isfinite(got).all() and (got >= 0).all() and (got <= 1).all()
  clipped = np.asarray(of(kind(WILD), None, 'gap', Hyperparameters(gap_clip=0.2)))[0]
  np.testing.assert_allclose(clipped[[1, 2]], special.expit([1.0, -1.0]), rtol=1e-6)


@pytest.mark.parametrize('name', gates.GATES)
def test_no_gradient_goes_through_a_gate(name):
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
  want = -of(gap, arrays[1], name, Hyperparameters()) * mask / mask.sum()
  np.testing.assert_allclose(by_logprobs, want, rtol=1e-5, atol=1e-9)
