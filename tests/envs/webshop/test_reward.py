"""Scores against the original's, and its text similarity against its definition."""

import dataclasses
import difflib
import re

import little_shop
import pytest
import webshop_records as records
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.envs.webshop import nouns
from sdar_jax.envs.webshop.goals import make_goal
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.reward import alike, score_purchase, simplify_color

RULE = NounSource('rule')


def parts(score):
  return {k: v for k, v in dataclasses.asdict(score).items() if v is not None}


def test_recorded_scores_given_the_recorded_nouns():
  recorded = records.read('reward')
  shelf = records.products()
  errors = 0
  for record in recorded:
    goal = records.goal_of(record['goal'])
    product = shelf[shelf.row_of(record['asin'])]
    known = {
      product.title: record['nouns']['purchased'],
      goal.name: record['nouns']['goal'],
    }
    arguments = (product, record['options'], record['price'], goal)
    if 'error' in record['out']:
      errors += 1
      with pytest.raises(ValueError, match='needs an attribute and a positive bound'):
        score_purchase(*arguments, known.__getitem__)
      continue
    assert parts(score_purchase(*arguments, known.__getitem__)) == record['out']
  assert (len(recorded), errors) == (3200, 52)


def test_the_rule_gives_the_recorded_nouns():
  shelf = records.products()
  for record in records.read('reward'):
    title = shelf[shelf.row_of(record['asin'])].title
    assert list(RULE(title)) == record['nouns']['purchased']
    assert list(RULE(record['goal']['name'])) == record['nouns']['goal']


def buy(product, goal, chosen=(), price=10.0):
  return score_purchase(product, dict(chosen), price, goal, RULE)


def wanted(options=(), attributes=('easy clean', 'bright'), **given):
  lamp = little_shop.product(
    'B1', 'Oak Desk Lamp', attributes=('easy clean', 'very bright'), **given
  )
  want = dataclasses.replace(lamp.synthetic, attributes=attributes)
  return lamp, make_goal(lamp, want, options, bound=20.0)


def test_a_perfect_purchase_scores_one():
  lamp, goal = wanted((('color', 'red'), ('size', 'small')))
  score = buy(lamp, goal, {'color': 'red', 'size': 'small'})
  assert score.total == 1.0
  assert (score.w_att, score.w_option, score.w_price) == (0.4, 0.4, 0.2)


def test_every_part_counts_as_much_as_it_weighs():
  lamp, goal = wanted((('color', 'red'), ('size', 'small')))
  assert buy(lamp, goal, {'size': 'small'}).total == 0.8
  assert buy(lamp, goal, {'size': 'small', 'color': 'red'}, 20.5).total == 0.8
  assert buy(lamp, goal, {'size': 'large'}, 20.0).total == pytest.approx(0.6)
  plain = dataclasses.replace(lamp, attributes=('heavy',))
  assert buy(plain, goal, {'size': 'small', 'color': 'red'}).r_att == 0.0


@pytest.mark.parametrize('place', ['title', 'description', 'bullet_points'])
def test_attributes_are_looked_for_in_the_texts_too(place):
  lamp, goal = wanted(attributes=('dimmable light',))
  assert buy(lamp, goal).r_att == 0.0
  said = 'A Dimmable Light of oak lamp'
  text = ('x', said) if place == 'bullet_points' else said
  assert buy(dataclasses.replace(lamp, **{place: text}), goal).r_att == 1.0


def test_colours_count_as_the_first_simple_one_they_contain():
  assert simplify_color('navy blue') == 'blue', 'in the order of the list'
  assert simplify_color('dark red') == 'dark'
  assert simplify_color('greenish') == 'green'
  assert simplify_color('x-large') == 'x-large'


def test_synthetic_options_are_compared_with_their_names():
  lamp, goal = wanted((('color', 'dark red'),))
  assert buy(lamp, goal, {'color': 'dark red'}).r_option == 1.0
  assert buy(lamp, goal, {'color': 'light color'}).r_option == 0.0
  assert buy(lamp, goal, {'size': 'color'}).r_option == 1.0, 'the name alone matches'
  human = make_goal(lamp, lamp.synthetic, (('', 'dark red'),), bound=20.0)
  assert buy(lamp, human, {'color': 'darkness'}).r_option == 1.0
  assert buy(lamp, human, {'size': 'color'}).r_option == 0.0


@pytest.mark.parametrize(
  'title, query, path, r_type',
  [
    ('Oak Chair', 'chairs', 'Home › Chairs', 1.0),  # A third of the nouns is enough.
    ('Chair', 'lamps', 'Home › Chairs', 0.0),  # No noun: the query does not help.
    ('', 'lamps', 'Home › Lighting › Lamps', 0.0),
    ('Desk Lamp', 'x', 'x', 1.0),
  ],
)
def test_the_kind_of_product(title, query, path, r_type):
  lamp, goal = wanted()
  bought = dataclasses.replace(lamp, title=title, query=query, product_category=path)
  assert buy(bought, goal).r_type == r_type


@pytest.mark.parametrize(
  'shared, query, path, r_type',
  [
    (2, 'x', 'x', 0.5),
    (2, 'lamps', 'x', 1.0),
    (2, 'x', 'Lamps › Home', 1.0),
    (2, 'x', 'Home', 0.5),
    (1, 'lamps', 'Home › Lighting › Lamps', 1.0),
    (0, 'lamps', 'Home › Lighting › Lamps', 0.0),
    (3, 'x', 'x', 1.0),
  ],
)
def test_few_shared_nouns_need_the_same_kind(shared, query, path, r_type):
  names = [f'noun{chr(97 + n)}' for n in range(10)]
  lamp, goal = wanted()
  goal = dataclasses.replace(goal, name=' '.join(names))
  bought = dataclasses.replace(lamp, title='x', query=query, product_category=path)
  known = {'x': names[:shared], goal.name: names}
  score = score_purchase(bought, {}, 10.0, goal, known.__getitem__)
  assert score.r_type == r_type
  known[goal.name] = [*names, *names[:1]]  # One of eleven is less than a tenth.
  if shared == 1:
    assert score_purchase(bought, {}, 10.0, goal, known.__getitem__).r_type == 0.1


def test_a_goal_without_nouns_is_of_any_kind_but_another():
  lamp, goal = wanted()
  goal = dataclasses.replace(goal, name='with the best')
  assert buy(lamp, goal).title_score == 0.2
  other = dataclasses.replace(lamp, query='x', product_category='x')
  assert buy(other, goal).r_type == 0.5


def slow_similarity(first, second):
  """The original's token set ratio as it is defined, without any shortcut."""

  def clean(text):
    text = ''.join(letter for letter in text if not 128 <= ord(letter) < 256)
    return re.sub(r'\W', ' ', text).lower().strip()

  def ratio(a, b):
    if not a or not b:
      return 0
    return 100 if a == b else round(100 * difflib.SequenceMatcher(None, a, b).ratio())

  ours, theirs = set(clean(first).split()), set(clean(second).split())
  if not ours or not theirs:
    return 0
  shared = ' '.join(sorted(ours & theirs))
  left = (shared + ' ' + ' '.join(sorted(ours - theirs))).strip()
  right = (shared + ' ' + ' '.join(sorted(theirs - ours))).strip()
  return max(ratio(shared, left), ratio(shared, right), ratio(left, right))


WORDS = st.lists(
  st.sampled_from(
    'red reds blue blues x_l x-l L large larger é müll 10" (pack) 日'.split()
  )
)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_alike_is_the_similarity_above_85(first, second):
  first, second = ' '.join(first), ' '.join(second)
  assert alike(first, second) == (slow_similarity(first, second) > 85)


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_alike_takes_any_text(first, second):
  assert alike(first, second) == (slow_similarity(first, second) > 85)


def test_noun_sources_say_their_name(monkeypatch):
  monkeypatch.setattr(nouns.importlib.util, 'find_spec', lambda name: None)
  assert NounSource('auto').name == NounSource('rule').name == 'rule'
  with pytest.raises(ValueError, match="noun_source='spacy': install one of"):
    NounSource('spacy')
  with pytest.raises(ValueError, match="noun_source='x': must be one of"):
    NounSource('x')
  monkeypatch.setattr(nouns.importlib.util, 'find_spec', lambda name: 'sm' in name)
  assert NounSource('auto').name == NounSource('spacy').name == 'en_core_web_sm'
  assert NounSource('rule').name == 'rule'


def test_a_model_tags_where_there_is_one(monkeypatch):
  token = lambda text, pos: type('Token', (), {'text': text, 'pos_': pos})
  tokens = [token('Oak', 'PROPN'), token('is', 'AUX'), token('Wood', 'NOUN')]
  monkeypatch.setattr(nouns.importlib.util, 'find_spec', lambda name: 'lg' in name)
  monkeypatch.setattr(nouns, '_model', lambda name: lambda text: tokens)
  source = NounSource()
  assert source.name == 'en_core_web_lg'
  assert source('Oak is Wood') == ('oak', 'wood')
