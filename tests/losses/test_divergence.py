import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sdar_jax.losses import divergence, variants

VOCAB, VALID, K = 9, 7, 3
EXACT = {'rtol': 1e-10, 'atol': 1e-13}


def logits_of(seed, scale=2.0):
  rng = np.random.default_rng(seed)
  pair = scale * rng.standard_normal((2, 2, 4, VOCAB))
  pair[..., VALID:] = [[[[1e4, np.nan]]], [[[np.inf, 3.0]]]]  # Ids without a token.
  return pair


def loop_divergence(student, teacher, kind, weight=0.5):
  """By id and position, of probabilities over the last axis."""
  out = np.zeros(student.shape[:-1])
  for position in np.ndindex(out.shape):
    for s, t in zip(student[position], teacher[position]):
      if kind == 'reverse_kl':
        out[position] += special.rel_entr(s, t)
      elif kind == 'forward_kl':
        out[position] += special.rel_entr(t, s)
      else:
        m = weight * t + (1 - weight) * s
        out[position] += weight * special.rel_entr(t, m)
        out[position] += (1 - weight) * special.rel_entr(s, m)
  return out


def ways(function, kind):
  """Jitted, and once eagerly: 'jsd' computes what both KLs do."""
  return [jax.jit(function), *[function] * (kind == 'jsd')]


def probabilities(logits):
  return special.softmax(logits[..., :VALID], axis=-1)


def numeric_gradient(function, x, step=1e-6):
  grad = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[index] += step
    down[index] -= step
    grad[index] = (function(up) - function(down)).sum() / (2 * step)
  return grad


@pytest.mark.parametrize('kind', divergence.KINDS)
def test_full_vocabulary_equals_a_loop_with_its_gradient(kind):
  student, teacher = logits_of(0)
  oracle = lambda logits: loop_divergence(
    probabilities(logits), probabilities(teacher), kind, 0.3
  )
  full = functools.partial(
    divergence.full, kind=kind, valid_vocab=VALID, jsd_weight=0.3
  )
  with jax.enable_x64(True):
    for function in ways(full, kind):
      values, pull = jax.vjp(function, student, teacher)
      grads = pull(jnp.ones_like(values))
      np.testing.assert_allclose(values, oracle(student), **EXACT)
      numeric = numeric_gradient(oracle, student[..., :VALID])
      np.testing.assert_allclose(grads[0][..., :VALID], numeric, atol=1e-8)
      np.testing.assert_array_equal(grads[0][..., VALID:], 0)
      np.testing.assert_array_equal(grads[1], 0)  # The teacher is a constant.


@pytest.mark.parametrize('kind', divergence.KINDS)
def test_topk_equals_a_loop_with_its_gradient(kind):
  student, teacher = (np.log(probabilities(logits)) for logits in logits_of(1))
  ids = np.argsort(-teacher, axis=-1)[..., :K]
  chosen = [np.take_along_axis(x, ids, axis=-1) for x in (student, teacher)]

  def close(logprobs):
    p = np.exp(logprobs)
    return np.concatenate([p, 1 - p.sum(axis=-1, keepdims=True)], -1)

  oracle = lambda x: loop_divergence(close(x), close(chosen[1]), kind)
  function = functools.partial(divergence.topk, kind=kind)
  with jax.enable_x64(True):
    for call in ways(function, kind):
      values, pull = jax.vjp(call, *chosen)
      grads = pull(jnp.ones_like(values))
      np.testing.assert_allclose(values, oracle(chosen[0]), **EXACT)
      np.testing.assert_allclose(
        grads[0], numeric_gradient(oracle, chosen[0]), atol=1e-7
      )
      np.testing.assert_array_equal(grads[1], 0)


@pytest.mark.parametrize('kind', divergence.KINDS)
def test_the_tail_bounds_the_exact_divergence_and_all_ids_reach_it(kind):
  logits = logits_of(2)
  student, teacher = (np.log(probabilities(x)) for x in logits)
  exact = loop_divergence(np.exp(student), np.exp(teacher), kind)
  order = np.argsort(-teacher, axis=-1)
  with jax.enable_x64(True):
    last = 0
    for k in (1, 3, 5, VALID):
      ids = order[..., :k]
      chosen = [np.take_along_axis(x, ids, axis=-1) for x in (student, teacher)]
      got = np.asarray(divergence.topk(*chosen, kind=kind))
      assert (got >= last - 1e-12).all()  # A finer partition tells more.
      last = got
  np.testing.assert_allclose(last, exact, atol=1e-10)


@pytest.mark.parametrize('kind', divergence.KINDS)
def test_equal_distributions_have_no_divergence_and_no_gradient(kind):
  logits = np.nan_to_num(logits_of(3)[0]).astype(np.float32)
  full = lambda x: divergence.full(x, logits, kind=kind, valid_vocab=VALID).sum()
  value, grad = jax.value_and_grad(full)(logits)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(grad, 0, atol=1e-6)


@pytest.mark.parametrize('kind', divergence.KINDS)
def test_sharp_and_distant_distributions_are_finite(kind):
  values = np.array([[0.0, 1e4, -1e4], [1e4, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
  pairs = [np.stack(x) for x in zip(*[(a, b) for a in values for b in values])]
  full = lambda x: divergence.full(x, pairs[1], kind=kind, valid_vocab=3)
  # Log-probabilities that fill the mass, by rounding overfill it, or hold none of it.
  shares = np.array([[0.0, -1e4], [-0.6931471, -0.693147], [-1e4, -1e4]], np.float32)
  duos = [np.stack(x) for x in zip(*[(a, b) for a in shares for b in shares])]
  top = lambda x: divergence.topk(x, duos[1], kind=kind)
  for function, argument in ((full, pairs[0]), (top, duos[0])):
    out, pull = jax.vjp(jax.jit(function), argument)
    assert np.isfinite(out).all() and (np.asarray(out) > -1e-5).all()
    assert np.isfinite(pull(jnp.ones_like(out))[0]).all()


def test_the_tail_is_stable_where_the_top_holds_almost_everything():
  tail = 1e-5  # In float32, 1 - sum exp would keep two digits of it.
  logprobs = np.log1p(-np.array([[tail]], np.float32))
  uniform = np.log(np.array([[0.5]], np.float32))
  got = divergence.topk(uniform, logprobs, kind='forward_kl')
  want = special.rel_entr(1 - tail, 0.5) + special.rel_entr(tail, 0.5)
  np.testing.assert_allclose(got[0], want, rtol=1e-6)
  got = divergence.topk(logprobs, uniform, kind='forward_kl')
  share = -np.expm1(np.float64(logprobs[0, 0]))
  want = special.rel_entr(0.5, 1 - share) + special.rel_entr(0.5, share)
  np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_jsd_is_symmetric_bounded_and_tends_to_forward_kl():
  student, teacher = (np.nan_to_num(x) for x in logits_of(4))
  call = functools.partial(divergence.full, valid_vocab=VALID)
  with jax.enable_x64(True):
    left = call(student, teacher, kind='jsd', jsd_weight=0.3)
    right = call(teacher, student, kind='jsd', jsd_weight=0.7)
    np.testing.assert_allclose(left, right, rtol=1e-12)
    assert (np.asarray(call(student, teacher, kind='jsd')) <= np.log(2)).all()
    small = call(student, teacher, kind='jsd', jsd_weight=1e-7) / 1e-7
    forward = call(student, teacher, kind='forward_kl')
    np.testing.assert_allclose(small, forward, rtol=1e-4)


def test_the_token_clip_caps_the_value_and_stops_the_gradient():
  student, teacher = logits_of(5)
  call = functools.partial(divergence.full, kind='forward_kl', valid_vocab=VALID)
  with jax.enable_x64(True):
    free = np.asarray(call(student, teacher))
    cut = np.median(free)
    values, pull = jax.vjp(lambda x: call(x, teacher, token_clip=cut), student)
    grad = np.asarray(pull(jnp.ones_like(values))[0])
  np.testing.assert_allclose(values, np.minimum(free, cut), rtol=1e-12)
  assert (grad[free > cut] == 0).all() and (grad[free < cut] != 0).any()


def test_chunks_of_positions_are_the_whole():
  student, teacher = logits_of(6)
  call = functools.partial(divergence.full, kind='jsd', valid_vocab=VALID)
  with jax.enable_x64(True):
    whole = call(student, teacher)
    parts = [call(student[:, i : i + 2], teacher[:, i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-14)


def test_the_exact_reverse_kl_is_what_opsd_samples():
  student, teacher = logits_of(7)
  with jax.enable_x64(True):
    logp = jax.nn.log_softmax(student[..., :VALID])
    logt = jax.nn.log_softmax(teacher[..., :VALID])
    mask = np.ones((8, VALID), bool)
    flat = lambda x: x.reshape(8, VALID)

    def sampled(logits):
      logp = flat(jax.nn.log_softmax(logits))
      measure = jax.lax.stop_gradient(jnp.exp(logp))
      return jnp.sum(measure * variants.opsd(logp, flat(logt), mask, gap_clip=np.inf))

    exact = lambda x: divergence.full(
      x, logt, kind='reverse_kl', valid_vocab=VALID
    ).sum()
    grads = [jax.grad(function)(logp) for function in (sampled, exact)]
  np.testing.assert_allclose(*grads, atol=1e-14)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'kind': 'tv'}, "divergence='tv'"),
    ({'valid_vocab': 0}, 'valid_vocab=0'),
    ({'valid_vocab': VOCAB + 1}, f'valid_vocab={VOCAB + 1}'),
    ({'kind': 'jsd', 'jsd_weight': 1.0}, 'jsd_weight=1.0'),
  ],
)
def test_wrong_arguments_are_named(changes, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    divergence.full(
      *logits_of(8), **{'kind': 'forward_kl', 'valid_vocab': VALID, **changes}
    )
