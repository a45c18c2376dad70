import json
import lzma

import numpy as np
import pytest
from shared import shared_path

from sdar_jax.envs.base import Exchange, Observation
from sdar_jax.envs.webshop import belief as beliefs
from sdar_jax.envs.webshop.belief import believe
from sdar_jax.envs.webshop.generated import GeneratedGoals
from sdar_jax.envs.webshop.instruction import ShopInstruction
from sdar_jax.envs.webshop.world import WebshopWorld

ASKED = ShopInstruction('drum', ('loud',), {'color': 'red', 'size': 'big'}, 40)
HEAD = 'Instruction: [SEP] Buy a drum. [SEP] '
START = 'WebShop [SEP] Instruction: [SEP] Buy a drum. [SEP] Search'
RESULTS = (
  f'{HEAD}Back to Search [SEP] Page 1 (Total results: 12) [SEP] Next > [SEP] '
  'B0AAAAAAAA [SEP] Bum Drum for Kids [SEP] $12.5 [SEP] '
  'B0BBBBBBBB [SEP] Bim Drum [SEP] $38.0 to $61.2'
)
SECOND = (
  f'{HEAD}Back to Search [SEP] Page 2 (Total results: 12) [SEP] < Prev [SEP] '
  'Next > [SEP] B0CCCCCCCC [SEP] Bam Drum [SEP] $7.0'
)
ITEM = (
  f'{HEAD}Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] blue [SEP] size '
  '[SEP] big [SEP] Bum Drum for Kids [SEP] Price: $12.5 [SEP] Rating: N.A. [SEP] '
  'Description [SEP] Features [SEP] Reviews [SEP] Buy Now'
)
SMALL = ITEM.replace('big', 'tiny')
LOUD = f'{HEAD}Back to Search [SEP] < Prev [SEP] Very Loud [SEP] Round'
SOFT = f'{HEAD}Back to Search [SEP] < Prev [SEP] Very soft'
LINKS = ('red', 'blue', 'big', 'tiny', 'buy now', '< prev')


def read(*turns):
  """The belief after [text, action, text, action, ..., text]."""
  texts, actions = turns[::2], turns[1::2]
  history = [Exchange(*pair) for pair in zip(texts, actions)]
  return believe(history, Observation(texts[-1]))


def test_the_first_page():
  belief = read(START)
  assert (belief.page, belief.query, belief.past) == (beliefs.START, '', [])


def test_results():
  belief = read(START, 'search[Loud Drum]', RESULTS)
  assert (belief.page, belief.query, belief.number) == ('results', 'loud drum', 1)
  assert belief.results == ['b0aaaaaaaa', 'b0bbbbbbbb']
  listing = belief.listings['b0aaaaaaaa']
  assert (listing.words, listing.price) == (['bum', 'drum', 'kids'], 12.5)
  assert listing.dollars == 13
  assert belief.listings['b0bbbbbbbb'].price == 61.2  # The most it may cost.
  belief = read(START, 'search[drum]', RESULTS, 'click[next >]', SECOND)
  assert (belief.number, belief.results) == (2, ['b0cccccccc'])
  assert belief.query == 'drum' and len(belief.listings) == 3


def test_no_results():
  empty = f'{HEAD}Back to Search [SEP] Page 1 (Total results: 0) [SEP] Next >'
  belief = read(START, 'search[xyz]', empty)
  assert (belief.page, belief.results) == ('results', [])


def opened(*more):
  return read(START, 'search[drum]', RESULTS, 'click[B0AAAAAAAA]', *more)


def test_an_item_and_its_options():
  belief = opened(ITEM)
  observation = Observation(ITEM, tuple(f'click[{link}]' for link in LINKS))
  assert (belief.page, belief.item) == ('item', 'b0aaaaaaaa')
  assert belief.options(observation) == {'color': ['red', 'blue'], 'size': ['big']}
  assert belief.chosen(observation) == {}
  belief = opened(ITEM, 'click[Red]', ITEM, 'click[big]', ITEM, 'click[blue]', ITEM)
  assert belief.chosen(observation) == {'color': 'blue', 'size': 'big'}
  assert not any(idle for _, idle in belief.past)


def test_options_stay_chosen_on_detail_pages_only():
  observation = Observation(ITEM, tuple(f'click[{link}]' for link in LINKS))
  there = (ITEM, 'click[red]', ITEM, 'click[features]', LOUD)
  belief = opened(*there)
  assert (belief.page, belief.detail) == ('detail', 'features')
  assert belief.lines == ['Very Loud', 'Round']
  belief = opened(*there, 'click[< prev]', ITEM)
  assert belief.chosen(observation) == {'color': 'red'}
  belief = opened(*there[:3], 'click[< prev]', RESULTS, 'click[b0aaaaaaaa]', ITEM)
  assert belief.chosen(observation) == {}


def test_what_a_product_lacks():
  assert opened(ITEM).lacks(ASKED, 'b0aaaaaaaa') == ''
  assert not opened(ITEM).confirmed(ASKED, 'b0aaaaaaaa')
  assert opened(SMALL).lacks(ASKED, 'b0aaaaaaaa') == 'big'
  soft = opened(ITEM, 'click[features]', SOFT)
  assert soft.lacks(ASKED, 'b0aaaaaaaa') == 'loud'
  loud = opened(ITEM, 'click[features]', LOUD)
  assert loud.lacks(ASKED, 'b0aaaaaaaa') == '' and loud.confirmed(ASKED, 'b0aaaaaaaa')
  assert loud.lacks(ASKED, 'b0bbbbbbbb') == ''
  assert not loud.confirmed(ASKED, 'b0bbbbbbbb')
  assert not opened(SMALL, 'click[features]', LOUD).confirmed(ASKED, 'b0aaaaaaaa')


def test_the_description_is_not_the_features_page():
  belief = opened(ITEM, 'click[description]', SOFT)
  assert belief.detail == 'description' and belief.lacks(ASKED, 'b0aaaaaaaa') == ''


def test_actions_that_did_nothing():
  there = (ITEM, 'click[green]', ITEM, 'sing', ITEM, '', ITEM)
  belief = opened(*there, 'click[red]', ITEM)
  idle = {action: nothing for action, nothing in belief.past}
  assert idle == {
    'search[drum]': False,
    'click[B0AAAAAAAA]': False,
    'click[green]': True,
    'sing': True,
    '': True,
    'click[red]': False,
  }


def test_the_receipt():
  belief = opened(ITEM, 'click[buy now]', 'Thank you for shopping with us! [SEP] x')
  assert belief.page == beliefs.DONE


def test_an_item_of_unknown_origin():
  belief = read(ITEM)
  assert (belief.page, belief.item) == ('item', '')
  assert belief.listings[''].words == ['bum', 'drum', 'kids']


def test_the_instruction():
  assert beliefs.instruction_in(START) == beliefs.instruction_in(ITEM) == 'Buy a drum.'
  assert beliefs.instruction_in('Thank you') == ''
  assert beliefs.without_instruction(START) == 'Search'
  assert beliefs.without_instruction(LOUD).startswith('Back to Search [SEP] < Prev')
  assert beliefs.without_instruction('Thank you') == 'Thank you'


@pytest.mark.parametrize(
  ('action', 'verb', 'wanted'),
  [
    ('click[Red]', 'click', 'red'),
    ('search[a b]', 'search', 'a b'),
    ('search[a b]', 'click', ''),
    ('click red', 'click', ''),
    ('click[]', 'click', ''),
  ],
)
def test_arguments(action, verb, wanted):
  assert beliefs.argument(action, verb) == wanted


def test_belief_agrees_with_the_engine():
  """In random walks, what was read is where the engine says that the agent is."""
  world, draws = WebshopWorld(noun_source='rule'), np.random.default_rng(5)
  names = {'start': 'start', 'results': 'results', 'item': 'item', 'sub': 'detail'}
  pages = set()
  for index in range(60):
    task, env = GeneratedGoals('train')[index], world.make_env()
    observation = env.reset(task)
    belief = beliefs.ShopBelief()
    belief.read('', observation.text)
    for _ in range(15):
      action = world.mistake(observation, draws)
      observation = env.step(action).observation
      belief.read(action, observation.text)
      assert belief.page == names[env._page]
      pages.add(belief.page)
      if belief.page == 'item':
        assert belief.item.upper() == world.shop.catalogue.asins[env._row]
        assert belief.chosen(observation) == env.options
  assert len(pages) == 4


def test_the_official_pages_can_be_read():
  path = shared_path('golden/webshop/webshop_pages.public.jsonl.xz')
  seen, chosen = set(), {}
  with lzma.open(path, 'rt') as lines:
    for line in lines:
      walk = json.loads(line)
      if walk['kind'].startswith('script'):
        continue
      belief = beliefs.ShopBelief()
      for step in walk['steps']:
        if 'obs' not in step or belief.page == beliefs.DONE:
          break
        belief.read(step['action'] or '', step['obs'])
        links = tuple(f'click[{name}]' for name in step['clickables'])
        if belief.page == beliefs.RESULTS:
          assert set(belief.results) <= set(step['clickables'])
        if belief.page == beliefs.ITEM:
          options = belief.options(Observation(step['obs'], links))
          values = {value for group in options.values() for value in group}
          assert values <= set(step['clickables'])
        if 'purchase' in step:
          assert chosen == step['purchase']['options']
        if belief.page == beliefs.ITEM:
          chosen = belief.chosen(Observation(step['obs'], links))
        seen.add(belief.page)
  assert seen == {'start', 'results', 'item', 'detail', 'done'}
