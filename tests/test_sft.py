"""Practice in copying, names that change places, and who plays which demonstrations."""

import itertools

import numpy as np
import pytest

from sdar_jax.envs import worlds
from sdar_jax.envs.webshop import generated
from sdar_jax.prompts.skills import NOTHING, SkillView
from sdar_jax.rollout import demonstrations


def test_copying_repeats_its_prompt():
  source = demonstrations.copying([3, 5, 8, 13], shortest=2, longest=6, seed=1)
  rows = list(itertools.islice(source, 300))
  for row in rows:
    assert row.prompt_ids.tolist() == row.response_ids.tolist()
  assert {len(row.prompt_ids) for row in rows} == {2, 3, 4, 5, 6}
  counts = np.bincount(np.concatenate([row.prompt_ids for row in rows]), minlength=14)
  assert np.flatnonzero(counts).tolist() == [3, 5, 8, 13]
  assert counts[3] > 200  # All tokens are practised alike.


def test_names_change_places_within_their_sets_and_consistently():
  prompt, response = np.array([0, 4, 5, 9, 4, 7]), np.array([5, 9, 1])
  source = itertools.repeat(demonstrations.Demonstration(prompt, response))
  sets = [np.array([4, 5, 6]), np.array([8, 9])]
  seen = set()
  renamed = demonstrations.with_new_names(source, sets, vocab=10, seed=2)
  for row in itertools.islice(renamed, 200):
    mapping = dict(zip(prompt.tolist(), row.prompt_ids.tolist()))
    assert mapping[0] == 0 and mapping[7] == 7  # No names.
    assert {mapping[4], mapping[5]} <= {4, 5, 6} and mapping[4] != mapping[5]
    assert row.prompt_ids[1] == row.prompt_ids[4]
    assert row.response_ids.tolist() == [mapping[5], mapping[9], 1]
    seen.add((mapping[4], mapping[5], mapping[9]))
  assert len(seen) == 12  # 3! of one set times 2! of the other.


def _first_searches(episodes, **fractions):
  """(prompt shows skills, what is searched for first) of some WebShop episodes."""
  world = worlds.make('webshop', {'prompt_style': 'compact'})
  turns = demonstrations.play(
    world,
    world.tasks('train'),
    plain=lambda text, task: (np.array([0, text.endswith('\nstart')]), NOTHING),
    skilled=lambda text, task: (np.array([1, text.endswith('\nstart')]), NOTHING),
    encode=lambda text: text,
    lessons=demonstrations.Lessons(
      mistake_rate=0.0, seed=3, max_prompt_tokens=2, **fractions
    ),
  )
  first = (t for t in turns if t.prompt_ids[1])
  return [
    (bool(t.prompt_ids[0]), t.response_ids.split('search[')[1])
    for t in itertools.islice(first, episodes)
  ]


def test_some_prompts_without_skills_are_answered_by_the_informed_expert():
  lines = [line for row in generated.categories().values() for line in row.lines]

  def informed(query):
    return query.split()[0] in lines

  # Only what is known to the informed expert names a product line.
  mixed = _first_searches(400, skilled_fraction=0.5, informed_fraction=0.3)
  assert all(informed(query) for skilled, query in mixed if skilled)
  plain = [informed(query) for skilled, query in mixed if not skilled]
  assert 0.2 < np.mean(plain) < 0.4 and 150 < len(plain) < 250
  never = _first_searches(60, skilled_fraction=0.0, informed_fraction=0.0)
  assert not any(informed(query) for _, query in never)
  always = _first_searches(60, skilled_fraction=0.0, informed_fraction=1.0)
  assert all(informed(query) for _, query in always)
  assert not any(skilled for skilled, _ in never + always)


def test_demonstrations_are_as_short_as_rollouts_prompts():
  """No row is longer than a prompt, its skills and a response may be."""
  world = worlds.make('alfworld', {'history_length': 30, 'max_turns': 12})
  ids = lambda text: np.zeros(len(text), np.int32)
  skilled = lambda text, task: (ids(text + 'x' * 50), SkillView(('a',), (), 50))

  def rows(limit):
    turns = demonstrations.play(
      world,
      world.tasks('train'),
      plain=lambda text, task: (ids(text), NOTHING),
      skilled=skilled,
      encode=ids,
      lessons=demonstrations.Lessons(
        skilled_fraction=0.5,
        informed_fraction=0.0,
        mistake_rate=0.0,
        seed=3,
        max_prompt_tokens=limit,
      ),
    )
    return [len(turn.prompt_ids) for turn in itertools.islice(turns, 60)]

  free = max(rows(10**6))
  limit = free * 2 // 3
  assert limit - 400 < max(rows(limit)) <= limit + 50 < free
  with pytest.raises(ValueError, match=r'max_prompt_tokens=20: raise it') as error:
    rows(20)
  assert '\n' not in str(error.value)
