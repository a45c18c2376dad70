"""Practice in copying, and demonstrations whose names change places."""

import itertools

import numpy as np

from sdar_jax import sft


def test_copying_repeats_its_prompt():
  source = sft.copying([3, 5, 8, 13], shortest=2, longest=6, seed=1)
  rows = list(itertools.islice(source, 300))
  for row in rows:
    assert row.prompt_ids.tolist() == row.response_ids.tolist()
  assert {len(row.prompt_ids) for row in rows} == {2, 3, 4, 5, 6}
  counts = np.bincount(np.concatenate([row.prompt_ids for row in rows]), minlength=14)
  assert np.flatnonzero(counts).tolist() == [3, 5, 8, 13]
  assert counts[3] > 200  # All tokens are practised alike.


def test_names_change_places_within_their_sets_and_consistently():
  prompt, response = np.array([0, 4, 5, 9, 4, 7]), np.array([5, 9, 1])
  source = itertools.repeat(sft.Demonstration(prompt, response))
  sets = [np.array([4, 5, 6]), np.array([8, 9])]
  seen = set()
  renamed = sft.with_new_names(source, sets, vocab=10, seed=2)
  for row in itertools.islice(renamed, 200):
    mapping = dict(zip(prompt.tolist(), row.prompt_ids.tolist()))
    assert mapping[0] == 0 and mapping[7] == 7  # No names.
    assert {mapping[4], mapping[5]} <= {4, 5, 6} and mapping[4] != mapping[5]
    assert row.prompt_ids[1] == row.prompt_ids[4]
    assert row.response_ids.tolist() == [mapping[5], mapping[9], 1]
    seen.add((mapping[4], mapping[5], mapping[9]))
  assert len(seen) == 12  # 3! of one set times 2! of the other.
