"""Plans of admission against a cache that remembers what was written where."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.sampler import admission

CHUNK = 3


class _Slots:
  """An oracle: tokens of each slot, by position; None is unknown."""

  def __init__(self, count):
    self.tokens = [dict() for _ in range(count)]
    self.computed = 0

  def run(self, plan, copies_per_call, rows, parts):
    for wave in plan.waves:
      for start in range(0, len(wave.copies), copies_per_call):
        batch = wave.copies[start : start + copies_per_call]
        read = [dict(self.tokens[source]) for source, _ in batch]
        assert len({target for _, target in batch}) == len(batch)
        for (_, target), tokens in zip(batch, read):
          self.tokens[target] = tokens
      each = len(self.tokens) // parts
      calls = admission.calls(wave.chunks, each, parts, rows)
      dealt = [chunk for call in calls for _, chunk in call]
      assert len(dealt) == len(wave.chunks)
      for call in calls:
        assert len({row for row, _ in call}) == len(call)
        for row, (slot, start, ids) in call:
          assert row < parts * rows and row // rows == slot // each
          self.tokens[slot].update(enumerate(ids.tolist(), start))
          self.computed += len(ids)
        for _, (slot, start, ids) in call:  # What a chunk attends to is there.
          assert all(at in self.tokens[slot] for at in range(start + len(ids)))


prompt = st.lists(st.integers(0, 1), max_size=14)


@settings(max_examples=400, deadline=None)
@given(
  parts=st.sampled_from([1, 2]),
  each=st.integers(1, 4),
  rounds=st.lists(
    st.tuples(st.lists(prompt, min_size=1, max_size=8), st.integers(0, 255)),
    min_size=1,
    max_size=6,
  ),
  sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_every_slot_ends_up_with_its_prompt(parts, each, rounds, sizes):
  count = parts * each
  held, slots, busy = admission.Prefixes(range(count)), _Slots(count), {}
  for prompts, ends in rounds:
    prompts = [np.array(ids, np.int32) for ids in prompts][: held.free]
    before = slots.computed
    plan = admission.plan(held, prompts, CHUNK)
    assert len(set(plan.slots)) == len(prompts) and not busy.keys() & set(plan.slots)
    slots.run(plan, *sizes, parts)
    computed = slots.computed - before
    assert plan.wanted == sum(map(len, prompts))
    assert plan.wanted == plan.kept + plan.copied + computed
    busy.update(zip(plan.slots, prompts))
    for slot, ids in busy.items():
      got = slots.tokens[slot]
      assert [got[i] for i in range(len(ids))] == ids.tolist()
    for slot in sorted(busy):
      # A response is written behind a prompt, and is nobody's to reuse.
      slots.tokens[slot].update({len(busy[slot]) + i: 'response' for i in range(2)})
      if ends >> slot & 1:
        held.release(slot)
        del busy[slot]


def _computed(held, *prompts):
  plan = admission.plan(held, [np.array(ids, np.int32) for ids in prompts], CHUNK)
  chunks = [chunk for wave in plan.waves for chunk in wave.chunks]
  return plan, [(c.slot, c.start) for c in chunks]


def test_a_group_is_computed_once_and_its_head_by_all():
  held = admission.Prefixes(range(8))
  one, other = [1, 2, 3, 4], [1, 2, 3, 5, 6]
  plan, computed = _computed(held, one, one, other, one)
  assert computed == [(0, 0), (0, 3), (2, 3)]
  assert [wave.copies for wave in plan.waves] == [[], [(0, 1), (0, 2), (0, 3)]]
  assert (plan.kept, plan.copied) == (0, 4 + 3 + 4)


def test_a_conversation_goes_on_where_it_was_and_others_do_not_disturb_it():
  held = admission.Prefixes(range(3))
  long = [1, 2, 3, 4, 5, 6]
  _computed(held, [9] * 6, long)
  held.release(0)
  held.release(1)
  # The second finds more in slot 1 than the first, which would have come first.
  plan, computed = _computed(held, [1, 2, 3, 7], [*long, 8])
  assert plan.slots == [2, 1] and computed == [(1, 6), (2, 3)]
  assert plan.waves[0].copies == [(1, 2)] and len(plan.waves) == 1


def test_the_slot_that_was_used_last_is_kept_longest():
  held = admission.Prefixes(range(3))
  _computed(held, [1], [2], [3])
  for slot in (1, 0, 2):
    held.release(slot)
  assert _computed(held, [4], [5])[0].slots == [1, 0]
  assert _computed(held, [3])[1] == []
  held.forget()
  held.release(2)
  assert _computed(held, [3])[1] == [(2, 0)]


def test_names_are_those_of_prefixes():
  ids = np.arange(8, dtype=np.int32)
  named = admission.names(ids, CHUNK)
  assert len(named) == 3 == len(set(named))
  assert admission.names(ids[:6], CHUNK) == named[:2]
  assert admission.names(ids[:7], CHUNK)[2] != named[2]
  assert not set(admission.names(ids[3:], CHUNK)) & set(named)
  assert admission.names(ids[:0], CHUNK) == ()
