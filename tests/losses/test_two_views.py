import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch

from sdar_jax.losses import distill, two_views


def test_the_term_and_its_gradient_equal_a_loop():
  batch = make_batch(1, spread=0.5, padding_rows=1)
  mask, rng = batch['response_mask'], np.random.default_rng(1)
  own, other = (batch[name].astype(float) for name in ('logprobs', 'teacher_logprobs'))
  action, gate = rng.random(mask.shape) < 0.5, rng.random(mask.shape)
  want, grad = np.zeros(mask.shape), np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    gap = other[i, t] - own[i, t]
    weight = (2.0 if action[i, t] else 1.0) * gate[i, t]
    want[i, t], grad[i, t] = weight * gap, -weight
  poisoned = [np.where(mask, array, np.nan) for array in (own, other)]
  function = lambda *views: two_views.two_view_distillation(
    *views, gate, action, mask, action_weight=2.0
  )
  with jax.enable_x64(True):
    for call in (function, jax.jit(function)):
      losses, pull = jax.vjp(call, *map(jnp.asarray, poisoned))
      grads = pull(jnp.ones_like(losses))
      np.testing.assert_allclose(losses, want, rtol=1e-10)
      np.testing.assert_allclose(grads[0], grad, rtol=1e-10)
      np.testing.assert_array_equal(grads[1], 0)  # The better view is not moved.


def test_unit_weights_give_sdars_term():
  batch = make_batch(2)
  mask, gate = batch['response_mask'], batch['entropy'] / 2
  arrays = (batch['logprobs'], batch['teacher_logprobs'], gate)
  got = two_views.two_view_distillation(*arrays, mask, mask, action_weight=1.0)
  np.testing.assert_array_equal(got, distill.weighted(*arrays, mask))


@pytest.mark.parametrize('gap', [1e4, -1e4])
def test_wild_gaps_are_finite(gap):
  mask, own = np.ones((1, 2), bool), np.full((1, 2), -1e4 - 1, np.float32)
  function = lambda x: two_views.two_view_distillation(
    x, own + gap, np.ones((1, 2)), mask, mask, action_weight=2.0
  )
  losses, pull = jax.vjp(function, own)
  assert np.isfinite(losses).all() and np.isfinite(pull(losses)[0]).all()
