import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from scipy import special

from sdar_jax.losses import masked, measures, policy, sequence

CLIPS = {'clip_low': 0.2, 'clip_high': 0.3, 'dual_clip': 3.0}


def surrogate(ratio, advantage):
  """Loss and gradient by log-prob of one token."""

  def scalar(logprob):
    shape = lambda x: jnp.reshape(x, (1, 1))
    losses = policy.clipped_surrogate(
      shape(logprob),
      jnp.zeros((1, 1)),
      shape(jnp.asarray(advantage)),
      jnp.ones((1, 1), bool),
      **CLIPS,
    )
    return losses[0, 0]

  return jax.jit(jax.value_and_grad(scalar))(jnp.log(ratio))


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'loss', 'gradient'),
  [
    (1.0, 2.0, -2.0, -2.0),  # On policy.
    (1.0, -2.0, 2.0, 2.0),
    (1.25, 2.0, -2.5, -2.5),  # Inside the upper clip.
    (1.5, 2.0, -2.6, 0.0),  # Beyond it.
    (0.5, 2.0, -1.0, -1.0),  # A good token that became rarer is never clipped.
    (0.9, -2.0, 1.8, 1.8),  # Inside the lower clip.
    (0.5, -2.0, 1.6, 0.0),  # Beyond it.
    (2.0, -2.0, 4.0, 4.0),  # A bad token that became likelier is pushed back,
    (3.5, -2.0, 6.0, 0.0),  # until the dual clip.
    (1.5, 0.0, 0.0, 0.0),
  ],
)
def test_surrogate_in_each_region(ratio, advantage, loss, gradient):
  got = surrogate(ratio, advantage)
  np.testing.assert_allclose(got, (loss, gradient), rtol=1e-6)


def test_on_policy_ratio_is_exactly_one():
  batch = make_batch(0)
  old, mask = batch['old_logprobs'], batch['response_mask']
  credit = np.where(mask, batch['advantages'][:, None], 0)
  losses = policy.clipped_surrogate(old, old, credit, mask, **CLIPS)
  np.testing.assert_array_equal(losses, -credit)
  metrics = measures.surrogate_metrics(old, old, credit, mask, **CLIPS)
  assert metrics['ratio'][0] == mask.sum()
  for name in ('clip_high', 'clip_low', 'clip_dual', 'approx_kl', 'log_ratio_abs'):
    assert metrics[name][0] == 0


def test_metrics_count_what_the_clips_stop():
  ratio = np.array([[1.0, 1.5, 1.5, 0.5, 0.5, 5.0, 9.0, 1e12]])
  credit = np.array([[1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -2.0, 0.0]])
  mask = np.ones((1, 8), bool)
  metrics = measures.surrogate_metrics(
    np.log(ratio).astype(np.float32),
    np.zeros((1, 8), np.float32),
    credit,
    mask,
    **CLIPS,
  )
  sums = {name: float(value) for name, (value, _) in metrics.items()}
  assert sums['clip_high'] == 1
  assert sums['clip_low'] == 1
  assert sums['clip_dual'] == 2
  assert sums['log_ratio_clamped'] == 1
  np.testing.assert_allclose(sums['approx_kl'], -np.log(ratio).sum(), rtol=1e-6)
  np.testing.assert_allclose(sums['log_ratio_abs'], np.abs(np.log(ratio)).sum())
  want = ratio[0, :-1].sum() + np.exp(policy.LOG_RATIO_LIMIT)
  np.testing.assert_allclose(sums['ratio'], want, rtol=1e-6)
  assert all(count == 8 for _, count in metrics.values())


def test_gspo_is_the_gradient_of_the_sequence_ratio():
  batch = make_batch(3, spread=1e-3)
  old, mask = batch['old_logprobs'], batch['response_mask']
  credit = np.where(mask, batch['advantages'][:, None], 0)
  clips = {'clip_low': 3e-4, 'clip_high': 4e-4}
  mode = 'seq-mean-token-mean'
  normaliser = masked.normaliser_of(mask, mode)

  def tokens(logprobs):
    losses = sequence.gspo(logprobs, old, credit, mask, **clips)
    return masked.aggregate(losses, mask, normaliser, mode)

  def sequences(logprobs):
    counts = mask.sum(axis=1)
    mean = jnp.sum(jnp.where(mask, logprobs - old, 0), axis=1) / counts
    ratio = jnp.exp(mean)
    clipped = jnp.clip(ratio, 1 - clips['clip_low'], 1 + clips['clip_high'])
    advantages = batch['advantages']
    return jnp.mean(jnp.maximum(-advantages * ratio, -advantages * clipped))

  for got, want in zip(
    jax.value_and_grad(tokens)(batch['logprobs']),
    jax.value_and_grad(sequences)(batch['logprobs']),
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)


def test_k1_and_k3_are_unbiased_and_k2_has_the_kl_gradient():
  rng = np.random.default_rng(0)
  logits, ref = rng.standard_normal((2, 1, 9))
  mask = np.ones((1, 9), bool)
  with jax.enable_x64(True):
    logq = jax.nn.log_softmax(jnp.asarray(ref))

    def mean(logits, kind, score):
      logp = jax.nn.log_softmax(logits)
      weights = jnp.exp(logp if score else jax.lax.stop_gradient(logp))
      return jnp.sum(weights * policy.kl_penalty(logp, logq, mask, kind=kind))

    p, q = special.softmax(logits), special.softmax(ref)
    kl = np.sum(special.rel_entr(p, q))
    logits = jnp.asarray(logits)
    np.testing.assert_allclose(mean(logits, 'k1', True), kl, rtol=1e-12)
    np.testing.assert_allclose(mean(logits, 'k3', True), kl, rtol=1e-12)
    want = jax.grad(mean)(logits, 'k1', True)
    np.testing.assert_allclose(jax.grad(mean)(logits, 'k2', False), want, atol=1e-12)


@pytest.mark.parametrize(
  ('kind', 'values', 'gradients'),
  [
    ('k1', (-1.0, 0.0, 5.0), (1, 1, 1)),
    ('k2', (0.5, 0.0, 12.5), (-1, 0, 5)),
    ('abs', (1.0, 0.0, 5.0), (-1, 0, 1)),
    ('k3', (np.e - 2, 0.0, np.exp(-5) + 4), (1 - np.e, 0, 1 - np.exp(-5))),
  ],
)
def test_kl_values_and_gradients(kind, values, gradients):
  logprobs = jnp.array([[-2.0, -1.0, -0.5]])
  ref = jnp.array([[-1.0, -1.0, -5.5]])
  mask = jnp.ones((1, 3), bool)
  function = lambda x: policy.kl_penalty(x, ref, mask, kind=kind)
  np.testing.assert_allclose(function(logprobs)[0], values, rtol=1e-6)
  grad = jax.grad(lambda x: function(x).sum())(logprobs)
  np.testing.assert_allclose(grad[0], gradients, rtol=1e-6)


@pytest.mark.parametrize('kind', policy.KL_KINDS)
def test_a_kl_of_the_policy_with_itself_is_exactly_nothing(kind):
  logprobs, mask = np.full((4, 5), -1e4, np.float32), np.ones((4, 5), bool)
  np.testing.assert_array_equal(
    policy.kl_penalty(logprobs, logprobs, mask, kind=kind), 0
  )


def test_k3_is_cut_at_ten():
  ref, mask = jnp.array([[3.0, 1e4, -1e4]]), jnp.ones((1, 3), bool)
  function = lambda x: policy.kl_penalty(x, ref, mask, kind='k3')
  np.testing.assert_array_equal(function(jnp.zeros((1, 3)))[0], 10)
  grad = jax.grad(lambda x: function(x).sum())(jnp.zeros((1, 3)))
  np.testing.assert_array_equal(grad, 0)


def test_entropy_loss_raises_entropy():
  batch = make_batch(4)
  mask = batch['response_mask']
  entropy = np.where(mask, batch['entropy'], np.nan)
  function = lambda x: policy.entropy_loss(x, mask)
  np.testing.assert_array_equal(function(entropy), -np.where(mask, entropy, 0))
  grad = jax.grad(lambda x: function(x).sum())(entropy)
  np.testing.assert_array_equal(grad, -mask.astype(np.float32))


def test_unknown_kl_is_named():
  one = np.zeros((1, 1), np.float32)
  with pytest.raises(ValueError, match="kl_kind='k4'"):
    policy.kl_penalty(one, one, np.ones((1, 1), bool), kind='k4')
