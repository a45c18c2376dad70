import numpy as np

from sdar_jax.advantages import anchors, two_views

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


def test_view_gaps_equal_a_loop():
  rng = np.random.default_rng(0)
  groups, anchor_ids = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
  returns, views, mask = rng.random(40), rng.random(40) < 0.5, rng.random(40) < 0.8
  want = loop_view_gaps(returns, groups, anchor_ids, views, mask)
  returns[~mask] = np.nan
  arrays = (returns, groups, anchor_ids, views, mask)
  got = two_views.view_gaps(*arrays)
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


def test_weights_equal_a_loop_and_only_one_view_is_taught():
  gaps = np.array([-1.0, 0.0, 0.05, 0.06, 0.3, 0.4, 1.0, 1e4, -1e4])
  want = [0, 0, 0, 0.3, 1.5, 2, 2, 2, 0]
  got = two_views.view_weights(gaps, **USUAL)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  taught = two_views.view_weights(gaps, **USUAL) > 0
  assert not (taught & (two_views.view_weights(-gaps, **USUAL) > 0)).any()


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
