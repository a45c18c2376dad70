"""Episodes against the original's transcripts; odd actions; pickling."""

import copy
import pickle
import random

import little_shop
import pytest
import webshop_records as records
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.envs.webshop import pages
from sdar_jax.envs.webshop.engine import (
  SEARCH_TEMPLATE,
  WebshopEnv,
  admits,
  read_action,
)
from sdar_jax.envs.webshop.goals import Goals

SHOP = little_shop.shop()
GOAL = Goals(SHOP.catalogue)[0]  # The oak desk lamp: red, large.


def started(goal=GOAL, **given):
  env = WebshopEnv(SHOP, **given)
  env.reset(little_shop.task(goal))
  return env


def has_search_bar(env):
  """Whether the page has one; searching works without."""
  return env.clickables == ['search']


def seen(env, text, reward, done):
  return text, env.clickables, has_search_bar(env), reward, done


def mismatches(env, rng, walk, goal):
  """Replays a recorded walk; yields what differs, the action first."""
  first = env.reset(little_shop.task(goal))
  recorded = walk['steps'][0]
  told = (recorded['obs'], recorded['clickables'], recorded['has_search_bar'])
  if (first.text, env.clickables, has_search_bar(env)) != told:
    yield 'reset', first
  for step in walk['steps'][1:]:
    if 'rng_seed_before' in step:
      rng.seed(step['rng_seed_before'])
    before = seen(env, '', 0, False)
    result = env.step(step['action'])
    if 'error' in step:  # The original crashed; ours stays where it is.
      if seen(env, '', result.reward, result.done) != before:
        yield step['action'], result
      return
    got = seen(env, result.observation.text, result.reward, result.done)
    keys = ('obs', 'clickables', 'has_search_bar', 'reward', 'done')
    told = tuple(step[key] for key in keys)
    if step['done'] and walk['variant'] == 'sdar':
      # sdar's copy then answers for another session: only the page is this one's.
      assert told[1:3] == (['search'], True)
      got, told = (got[0], *got[3:]), (told[0], *told[3:])
    if got != told:
      yield step['action'], got, told
    if 'purchase' in step:
      parts = {key: getattr(env.purchase, key) for key in step['purchase']['info']}
      if parts != step['purchase']['info'] or result.score != step['reward']:
        yield step['purchase'], parts


def test_all_recorded_walks_are_the_same_character_for_character():
  walks = records.read('pages')
  wrong = []
  for walk in walks:
    shop, listed = records.original(*records.setting(walk))
    goal, weight = listed[walk['goal_index']]
    recorded = records.goal_of(walk['goal'])
    assert weight == walk['goal']['weight']
    fields = goal.__slots__[1:]  # All but our own identity.
    assert all(getattr(goal, f) == getattr(recorded, f) for f in fields)
    rng = random.Random(0)
    env = WebshopEnv(shop, 'score', rng)
    wrong += mismatches(env, rng, walk, goal)
  assert len(walks) == 241
  assert sum(len(walk['steps']) - 1 for walk in walks) > 2000
  assert not wrong


def test_an_episode_of_our_own_shop():
  env = WebshopEnv(SHOP)
  first = env.reset(little_shop.task(GOAL))
  words = GOAL.instruction_text
  assert words.startswith(
    'find an easy clean lamp with color: red, and size: small, and price lower than '
  )
  assert first.text == f'WebShop [SEP] Instruction: [SEP] {words} [SEP] Search'
  assert first.admissible == (SEARCH_TEMPLATE,)
  head = f'Instruction: [SEP] {words} [SEP] Back to Search [SEP] '
  found = env.step('search[Oak Desk]').observation
  assert found.text == (
    f'{head}Page 1 (Total results: 2) [SEP] Next > [SEP] B000000001 [SEP] Oak Desk '
    'Lamp [SEP] $19.5 [SEP] B000000004 [SEP] Oak Chair [SEP] $19.5'
  )
  links = ('back to search', 'next >', 'b000000001', 'b000000004')
  assert found.admissible == tuple(f'click[{link}]' for link in links)
  item = env.step('click[B000000001]').observation
  body = (
    '< Prev [SEP] color [SEP] red [SEP] dark blue [SEP] size [SEP] small [SEP] large '
    '[SEP] Oak Desk Lamp [SEP] Price: $19.5 [SEP] Rating: N.A. [SEP] Description [SEP] '
    'Features [SEP] Reviews [SEP] Buy Now'
  )
  assert item.text == head + body
  assert env.step('click[red]').observation == item
  assert env.options == {'color': 'red'}
  features = env.step('click[features]').observation.text
  assert features == f'{head}< Prev [SEP] Oak Desk Lamp for everybody [SEP] '
  env.step('click[< prev]')
  env.step('click[small]')
  result = env.step('click[buy now]')
  assert (result.reward, result.done, result.success, result.score) == (
    1,
    True,
    True,
    1,
  )
  assert '{"color": "red", "size": "small"}' in result.observation.text
  assert result.observation.admissible == ()


def test_a_poor_purchase_pays_its_score_only_if_asked_to():
  for reward, paid in (('success', 0.0), ('score', 0.5)):
    env = started(reward=reward)
    env.step('search[oak]')
    env.step('click[b000000001]')
    result = env.step('click[buy now]')
    assert (result.reward, result.success, result.score) == (paid, False, 0.5)
    assert result.done
  with pytest.raises(ValueError, match="reward='x': must be one of"):
    WebshopEnv(SHOP, 'x')


def test_new_searches_forget_options():
  env = started()
  for action in ('search[oak]', 'click[b000000001]', 'click[red]', 'click[< prev]'):
    env.step(action)
  assert env.options == {}
  env.step('click[b000000001]')
  env.step('click[large]')
  env.step('click[small]')
  env.step('click[description]')
  env.step('click[< prev]')
  assert env.options == {'size': 'small'}
  assert env.step('click[back to search]').observation.admissible == (SEARCH_TEMPLATE,)
  assert env.options == {}


@pytest.mark.parametrize(
  'action', ['search[<a> x]', 'search[<c>]', 'click[search]', '']
)
def test_what_would_crash_the_original_does_nothing(action):
  env = started()
  before = env.step('search[lamp]')
  assert env.step(action) == before
  assert env.step('search[' + ' '.join(map(str, range(1100))) + ']') == before


def test_commands_list_products_in_the_order_of_the_catalogue():
  env = started()
  env.step('search[<c> garden]')
  assert env.clickables[2:4] == ['b000000001', 'b000000002'], 'ten of all twelve'
  assert 'Total results: 12' in env.step('click[next >]').observation.text
  env.step('search[<q> lanterns]')
  assert env.clickables[2:] == ['b000000003']


def test_random_products_depend_on_the_goal_and_the_turn():
  first, again, other = started(), started(), started(Goals(SHOP.catalogue)[3])
  assert first.step('search[<r>]') == again.step('search[<r>]')
  clickables = list(first.clickables)
  other.step('search[<r>]')
  assert other.clickables != clickables
  first.step('search[<r>]')
  assert first.clickables != clickables


def test_environments_survive_pickling_and_share_nothing():
  env = started()
  env.step('search[oak]')
  env.step('click[b000000001]')
  copies = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
  env.step('click[back to search]')
  for other in copies:
    other.step('click[red]')
    other.step('click[small]')
    assert other.step('click[buy now]').success
  assert has_search_bar(env)


def test_actions_are_read_as_the_original_reads_them():
  assert read_action('search[A b] please') == ('search', 'a b')
  assert read_action('click[a[B]]') == ('click[a', 'b]')
  assert read_action('search[a\nb]') is None
  assert read_action('') is None


def test_any_query_fits_the_search_template():
  start, results = (SEARCH_TEMPLATE,), ('click[next >]',)
  assert admits(start, 'search[red lamp]') and admits(results, 'click[Next >]')
  assert not admits(start, 'search[ ]') and not admits(start, SEARCH_TEMPLATE[:7])
  assert not admits(results, 'search[lamp]') and not admits(start, 'click[next >]')
  assert not admits(results, 'next >') and not admits(results, 'open[next >]')


ARGUMENTS = st.one_of(
  st.sampled_from(
    'lamp|oak|<r>|<c> garden|<q>|search_results|item_page|next >|< prev|features|'
    'description|reviews|buy now|back to search|b000000001|red|small|B00000010'.split(
      '|'
    )
  ),
  st.text(max_size=8),
)
ACTIONS = st.one_of(
  st.text(max_size=20),
  st.builds('{}[{}]'.format, st.sampled_from(('search', 'click')), ARGUMENTS),
)


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=12))
def test_no_action_breaks_an_episode(actions):
  env = started()
  for action in actions:
    result = env.step(action)
    assert 0.0 <= result.score <= 1.0 and (result.done or result.score == 0.0)
    assert result.observation.text
    if result.done:
      break


def test_pieces_of_pages_are_joined_as_a_browser_shows_them():
  assert pages.join(['a ', '', '\n', ' b', ' ']) == 'a [SEP] b [SEP] '
  receipt = pages.receipt('B1', {'size': "10' <b>", 'color': 'é'}, 0.5)
  assert r'{"color": "\u00e9", "size": "10\u0027 \u003cb\u003e"}' in receipt
