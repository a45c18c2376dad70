import difflib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.advantages import anchors, baselines

rows = st.lists(
  st.tuples(st.integers(0, 2), st.text('abc ', max_size=6)), min_size=1, max_size=12
)


def loop_anchor_ids(observations, groups, similarity):
  """Greedy first fit, each row against each founder, without any short cut."""
  founders, ids = [], []
  for group, observation in zip(groups, observations):
    for number, (other, founder) in enumerate(founders):
      if similarity is None:
        fits = observation == founder
      else:
        matcher = difflib.SequenceMatcher(None, observation, founder)
        fits = matcher.ratio() >= similarity
      if group == other and fits:
        ids.append(number)
        break
    else:
      ids.append(len(founders))
      founders.append((group, observation))
  return ids


@pytest.mark.parametrize('similarity', [None, 0.5, 0.8, 1.0])
def test_anchors_equal_a_loop(similarity):
  @settings(max_examples=100, deadline=None)
  @given(rows)
  def check(table):
    groups, observations = np.array([g for g, _ in table]), [o for _, o in table]
    got = anchors.anchor_ids(observations, groups, similarity=similarity)
    np.testing.assert_array_equal(
      got, loop_anchor_ids(observations, groups.tolist(), similarity)
    )

  check()


def test_long_pages_that_differ_in_a_price_are_one_anchor():
  page = 'Results for mugs [SEP] ' + ' [SEP] '.join(
    f'mug number {i}' for i in range(40)
  )
  observations = [page + ' $3.00', page + ' $3.50', 'You are at home.', page + ' $3.00']
  groups = np.zeros(4, int)
  exact = anchors.anchor_ids(observations, groups)
  np.testing.assert_array_equal(exact, [0, 1, 2, 0])
  similar = anchors.anchor_ids(observations, groups, similarity=0.95)
  np.testing.assert_array_equal(similar, [0, 0, 1, 0])
  wants = loop_anchor_ids(observations, groups, 0.95)
  np.testing.assert_array_equal(similar, wants)


def test_groups_never_share_an_anchor_and_feed_gigpo():
  groups = np.array([0, 0, 1, 1])
  ids = anchors.anchor_ids(['door'] * 4, groups)
  np.testing.assert_array_equal(ids, [0, 0, 1, 1])
  scores, mask = np.zeros(4), np.ones(4, bool)
  got = baselines.gigpo(
    scores,
    np.array([1.0, 0.0, 5.0, 5.0]),
    groups,
    np.arange(4),
    ids,
    mask,
    divide_by_std=False,
  )
  np.testing.assert_array_equal(got, [0.5, -0.5, 0, 0])


def test_wrong_inputs_are_named():
  with pytest.raises(ValueError, match='2 observations for 1 group_ids'):
    anchors.anchor_ids(['a', 'b'], np.zeros(1, int))
  for similarity in (0.0, 1.5):
    with pytest.raises(ValueError, match=f'similarity={similarity}'):
      anchors.anchor_ids(['a'], np.zeros(1, int), similarity=similarity)
