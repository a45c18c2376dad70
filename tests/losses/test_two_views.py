import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdar_jax.advantages import anchors, two_views
from sdar_jax.losses import distill
from sdar_jax.losses import two_views as two_views_lib

USUAL = {'margin': 0.05, 'temperature': 0.2, 'weight_cap': 2.0}


def loop_view_gaps(returns, groups, anchor_ids, views, mask):
  out = np.zeros(len(returns))
  for i in np.flatnonzero(mask):
    peers = [
      j
      for j in np.flatnonzero(mask)
      if groups[j] == groups[i] and anchor_ids[j] == anchor_ids[i]
    ]
    own = [returns[j] for j in peers if views[j] == views[i]]
    other = [returns[j] for j in peers if views[j] != views[i]]
    out[i] = np.mean(other) - np.mean(own) if other else 0.0
  return out


def test_view_gaps_equal_a_loop(everywhere):
  rng = np.random.default_rng(0)
  groups, anchor_ids = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
  returns, views, mask = rng.random(40), rng.random(40) < 0.5, rng.random(40) < 0.8
  want = loop_view_gaps(returns, groups, anchor_ids, views, mask)
  returns[~mask] = np.nan
  arrays = (returns, groups, anchor_ids, views, mask)
  for got in everywhere(two_views.view_gaps, *arrays):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
  order = rng.permutation(40)
  got = two_views.view_gaps(*(array[order] for array in arrays))
  np.testing.assert_allclose(got, want[order], rtol=1e-9, atol=1e-12)
  swapped = two_views.view_gaps(returns, groups, anchor_ids, ~views, mask)
  np.testing.assert_allclose(swapped, want, rtol=1e-9, atol=1e-12)


def test_one_view_alone_and_equal_returns_teach_nothing():
  ids, mask = np.zeros(4, int), np.ones(4, bool)
  alone = two_views.view_gaps(np.arange(4.0), ids, ids, mask, mask)
  np.testing.assert_array_equal(alone, 0)
  views, ids, mask = np.arange(10) < 3, np.zeros(10, int), np.ones(10, bool)
  equal = two_views.view_gaps(np.full(10, 0.1), ids, ids, views, mask)
  np.testing.assert_array_equal(equal, 0)


def test_weights_equal_a_loop_and_only_one_view_is_taught(everywhere):
  gaps = np.array([-1.0, 0.0, 0.05, 0.06, 0.3, 0.4, 1.0, 1e4, -1e4])
  want = [0, 0, 0, 0.3, 1.5, 2, 2, 2, 0]
  for got in everywhere(two_views.view_weights, gaps, **USUAL):
    np.testing.assert_allclose(got, want, rtol=1e-12)
  taught = two_views.view_weights(gaps, **USUAL) > 0
  assert not (taught & (two_views.view_weights(-gaps, **USUAL) > 0)).any()


def test_the_term_and_its_gradient_equal_a_loop(make_batch):
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
  function = lambda *views: two_views_lib.two_view_distillation(
    *views, gate, action, mask, action_weight=2.0
  )
  with jax.enable_x64(True):
    for call in (function, jax.jit(function)):
      losses, pull = jax.vjp(call, *map(jnp.asarray, poisoned))
      grads = pull(jnp.ones_like(losses))
      np.testing.assert_allclose(losses, want, rtol=1e-10)
      np.testing.assert_allclose(grads[0], grad, rtol=1e-10)
      np.testing.assert_array_equal(grads[1], 0)  # The better view is not moved.


def test_unit_weights_give_sdars_term(make_batch):
  batch = make_batch(2)
  mask, gate = batch['response_mask'], batch['entropy'] / 2
  arrays = (batch['logprobs'], batch['teacher_logprobs'], gate)
  got = two_views_lib.two_view_distillation(*arrays, mask, mask, action_weight=1.0)
  np.testing.assert_array_equal(got, distill.weighted(*arrays, mask))


@pytest.mark.parametrize('gap', [1e4, -1e4])
def test_wild_gaps_are_finite(gap):
  mask, own = np.ones((1, 2), bool), np.full((1, 2), -1e4 - 1, np.float32)
  function = lambda x: two_views_lib.two_view_distillation(
    x, own + gap, np.ones((1, 2)), mask, mask, action_weight=2.0
  )
  losses, pull = jax.vjp(function, own)
  assert np.isfinite(losses).all() and np.isfinite(pull(losses)[0]).all()


def test_from_pages_to_weights():
  """The skilled view wins at the shop's door and loses at its till."""
  pages, groups = ['door', 'door', 'till', 'till', 'roof'], np.zeros(5, int)
  views = np.array([True, False, True, False, True])
  ids = anchors.anchor_ids(pages, groups)
  returns, mask = np.array([1.0, 0.9, 0.0, 1.0, 1.0]), np.ones(5, bool)
  gaps = two_views.view_gaps(returns, groups, ids, views, mask)
  np.testing.assert_allclose(gaps, [-0.1, 0.1, 1.0, -1.0, 0.0], atol=1e-12)
  weights = two_views.view_weights(gaps, **USUAL)
  np.testing.assert_allclose(weights, [0, 0.5, 2.0, 0, 0], atol=1e-12)
