"""Goals against the original's recorded draws; our own goals and their splits."""

import collections
import random

import little_shop
import pytest
import webshop_records as records

from benchmarks import webshop_reference
from sdar_jax.envs.webshop import goals
from sdar_jax.envs.webshop.catalogue import Instruction, MemoryCatalogue, own_price
from sdar_jax.envs.webshop.goals import NO_BOUND, Goals, draw_bound


def recorded_goals():
  rows = collections.defaultdict(list)
  for record in records.read('goals'):
    rows[records.setting(record), record['what']].append(record)
  return rows


def told(goal, weight, human):
  options = [value for _, value in goal.options] if human else dict(goal.options)
  return {
    'asin': goal.asin,
    'goal_options': options,
    'attributes': list(goal.attributes),
    'price_upper': goal.price_upper,
    'weight': weight,
    'instruction_text': goal.instruction_text,
  }


def test_reference_draws_are_the_recorded_ones():
  counts = {}
  for (setting, what), rows in recorded_goals().items():
    human = setting[-1]
    if what == 'prices':
      prices = webshop_reference.draw_prices(
        records.products(), random.Random(setting[1])
      )
      assert all(prices[asin] == price for asin, price in rows[0]['prices'].items())
      continue
    _, listed = records.original(*setting)
    counts[setting[0], human] = len(listed)
    for record in rows:
      goal = told(*listed[record['index']], human)
      assert {key: record[key] for key in goal} == goal
    assert len(rows) == len(listed)
  expected = {False: 6910, True: 13}
  assert counts == {
    (v, h): expected[h] for v in ('princeton', 'sdar') for h in expected
  }


def drawn(variant, seed):
  """The synthetic goals as the original draws them."""
  return [goal for goal, _ in records.original(variant, seed, False)[1]]


def identity(goal):
  return goal.asin, goal.options, goal.attributes


def leaks(parts):
  """How many goals, and how many instructions, two or more parts share."""
  found = []
  for key in (identity, lambda goal: goal.instruction_text):
    where = collections.defaultdict(set)
    for name, part in parts.items():
      for goal in part:
        where[key(goal)].add(name)
    found.append(sum(len(names) > 1 for names in where.values()))
  return found


def test_official_splits_share_nothing_while_the_reference_leaks():
  everything = Goals(records.products())
  assert len(everything) == 6910
  indices = everything.split()
  parts = {
    name: [everything[int(index)] for index in part] for name, part in indices.items()
  }
  sizes = {name: len(part) for name, part in parts.items()}
  assert sizes == {'test': 500, 'valid': 1000, 'train': 5410}
  assert sorted(i for part in indices.values() for i in part.tolist()) == [*range(6910)]
  assert leaks(parts) == [0, 0]
  assert len({goal.goal_id for part in parts.values() for goal in part}) == 6910
  listed = drawn('sdar', 42)
  reference = {'test': listed[:500], 'train': listed[500:]}
  assert leaks(reference) == [2, 2]


def test_a_worker_tests_on_what_another_trains_on_where_each_shuffles_by_itself():
  tested = drawn('sdar', 42)[:500]
  trained = drawn('sdar', 43)[500:]
  known = {identity(goal) for goal in trained}
  texts = {goal.instruction_text for goal in trained}
  assert sum(identity(goal) in known for goal in tested) == 455
  assert len({identity(goal) for goal in tested} & known) == 454  # One stands twice.
  assert sum(goal.instruction_text in texts for goal in tested) == 261


def test_own_goals_are_those_of_the_original_but_for_the_bound():
  listed = [told(goal, 0, False) for goal in drawn('princeton', 42)]
  own = [told(goal, 0, False) for goal in Goals(records.products())]
  for goal in (*listed, *own):
    del goal['weight'], goal['price_upper']
    goal['instruction_text'] = goal['instruction_text'].split(', and price lower')[0]
  key = repr
  assert sorted(map(key, own)) == sorted(map(key, listed))
  assert [g['asin'] for g in own] != [g['asin'] for g in listed], 'not shuffled'


def many_products():
  """Twelve lamps with options, some of which want the same in the same words."""
  options = {'size': ('small', 'large', 'small'), 'color': ('red', 'blue')}
  wants = [Instruction(f'find lamp {n // 2}', ('easy clean',)) for n in range(12)]
  return [
    little_shop.product(
      f'B{n:09d}', f'Lamp {n}', options=options, synthetic=want, prices=(3.0 + n,)
    )
    for n, want in enumerate(wants)
  ]


def split_ids(products, sizes):
  everything = Goals(MemoryCatalogue(products))
  parts = everything.split(sizes)
  return {
    name: [everything[int(index)].goal_id for index in part]
    for name, part in parts.items()
  }


def test_options_turn_in_the_order_of_their_names():
  first = Goals(MemoryCatalogue(many_products()))
  assert len(first) == 72
  assert [goal.options for goal in first][:4] == [
    (('color', 'red'), ('size', 'small')),
    (('color', 'red'), ('size', 'large')),
    (('color', 'red'), ('size', 'small')),
    (('color', 'blue'), ('size', 'small')),
  ]
  words = first[4].instruction_text
  assert words.startswith('find lamp 0 with color: blue, and size: large, and price')
  assert [first[n].goal_id[23:] for n in range(6)] == ['', '', '-2'] * 2
  assert first[0].goal_id == first[2].goal_id[:-2]
  assert first[-1].asin == 'B000000011'
  with pytest.raises(IndexError):
    first[72]


def test_splits_depend_on_goals_and_not_on_their_order():
  products, sizes = many_products(), {'test': 10, 'valid': 20}
  split = split_ids(products, sizes)
  assert {name: len(part) for name, part in split.items()} == sizes | {'train': 42}
  assert split == split_ids(products[::-1], sizes)
  assert len({goal_id for part in split.values() for goal_id in part}) == 72


def test_families_stay_together():
  """Lamps 0 and 1 share their words, and either listed 'small' twice."""
  everything = Goals(MemoryCatalogue(many_products()))
  parts = everything.split({'test': 10, 'valid': 20})
  goals_of = {name: [everything[int(i)] for i in part] for name, part in parts.items()}
  assert leaks(goals_of) == [0, 0]
  words = lambda goal: goal.instruction_text.split(', and price')[0]
  where = collections.defaultdict(list)
  for name, part in goals_of.items():
    for goal in part:
      where[words(goal)].append(name)
  assert {len(names) for names in where.values()} == {2, 4}
  assert all(len(set(names)) == 1 for names in where.values())


def test_human_goals_that_share_words_or_products_stay_together():
  """One says what another says of another product, which a third wants as well."""

  def want(words, *options):
    return Instruction(words, ('bright',), options)

  chain = [
    little_shop.product('B1', 'A', human=(want('a lamp'), want('b lamp', 'red'))),
    little_shop.product('B2', 'B', human=(want('a lamp'), want('c lamp'))),
    little_shop.product('B3', 'C', human=(want('c lamp'),)),
  ]
  rest = [
    little_shop.product(f'B1{n}', 'D', human=(want(f'lamp {n}'),)) for n in range(20)
  ]
  everything = Goals(MemoryCatalogue(rest + chain), human=True)
  assert len(everything) == 25
  assert everything[21].options == (('', 'red'),)
  assert everything[21].instruction_text.startswith('b lamp, and price')
  for test in range(1, 20):
    parts = everything.split({'test': test})
    assert len(parts['test']) == test
    named = {
      name: {everything[int(index)].goal_id for index in part}
      for name, part in parts.items()
    }
    chained = {everything[20].goal_id, *(everything[n].goal_id for n in (22, 23, 24))}
    assert any(chained <= part for part in named.values())


def test_splits_that_cannot_be_filled_are_refused():
  listed = Goals(MemoryCatalogue(many_products()))
  with pytest.raises(ValueError, match='need more goals than the 72 there are'):
    listed.split({'test': 72})
  with pytest.raises(ValueError, match='could not be filled by whole families'):
    listed.split({'test': 1})


def test_bounds_lie_above_the_price_and_derive_from_the_goal():
  for goal in Goals(records.products()):
    product = records.products()[records.products().row_of(goal.asin)]
    price = own_price(product)
    if goal.price_upper == NO_BOUND:
      assert price >= 980
      continue
    assert goal.price_upper in [10 * (price // 10 + n) for n in (2, 3, 4)]
    assert goal.instruction_text.endswith(
      f', and price lower than {goal.price_upper:.2f} dollars'
    )
  first = Goals(MemoryCatalogue(many_products()))[5]
  alone = Goals(MemoryCatalogue(many_products()[:1]))[5]
  assert first == alone


def test_the_bound_is_the_larger_of_two_of_the_next_four():
  drawn = {draw_bound(25.0, random.Random(seed)) for seed in range(200)}
  assert drawn == {40.0, 50.0, 60.0}
  assert draw_bound(20.0, random.Random(0)) > 30.0, 'bounds are above the price'
  assert draw_bound(980.0, random.Random(0)) == NO_BOUND
  assert draw_bound(975.0, random.Random(0)) == 990.0


def test_goal_ids_hold_the_asin_and_all_that_is_wanted():
  lamp = little_shop.products()[0]
  want = lamp.synthetic
  made = {
    goals.make_goal(lamp, want, ()).goal_id,
    goals.make_goal(lamp, want, (('size', 'small'),)).goal_id,
    goals.make_goal(lamp, Instruction('other', want.attributes), ()).goal_id,
    goals.make_goal(lamp, Instruction(want.text, ('new',)), ()).goal_id,
  }
  assert len(made) == 4
  assert all(goal_id.startswith('B000000001-') for goal_id in made)
  assert goals.make_goal(lamp, want, (), bound=20.0).goal_id in made


def test_goals_that_repeat_are_numbered():
  options = {
    'size': ('s', 'l', 's', 's'),
    'color': ('red', 'red', 'blue'),
    'fit': ('x',),
  }
  lamp = little_shop.product('B1', 'Lamp', options=options)
  seen, expected = collections.Counter(), []
  for color in options['color']:
    for size in options['size']:
      chosen = (('color', color), ('fit', 'x'), ('size', size))
      seen[chosen] += 1
      ending = f'-{seen[chosen]}' if seen[chosen] > 1 else ''
      expected.append((chosen, ending))
  listed = list(Goals(MemoryCatalogue([lamp])))
  assert [(goal.options, goal.goal_id[15:]) for goal in listed] == expected
  human = (Instruction('a', ('x',)), Instruction('b', ('x',)), Instruction('a', ('x',)))
  lamp = little_shop.product('B1', 'Lamp', human=human)
  ids = [goal.goal_id for goal in Goals(MemoryCatalogue([lamp]), human=True)]
  assert ids[2] == f'{ids[0]}-2' and len(set(ids)) == 3
