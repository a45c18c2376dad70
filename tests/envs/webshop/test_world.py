import json
import lzma
import pickle

import numpy as np
import pytest
from shared import shared_path

from sdar_jax.envs import benchmark
from sdar_jax.envs.base import Exchange, Observation, ParsedAction
from sdar_jax.envs.webshop import engine, generated
from sdar_jax.envs.webshop.world import WebshopWorld
from sdar_jax.prompts import bank_file

SMALL = {'prompt_style': 'compact', 'parser': 'strict', 'noun_source': 'rule'}


@pytest.fixture(scope='module')
def official(tmp_path_factory):
  """A folder of official files, put together from the search engine's documents."""
  folder = tmp_path_factory.mktemp('webshop')
  with lzma.open(shared_path('data/webshop/products_1k.jsonl.xz'), 'rt') as lines:
    products = [json.loads(line)['product'] for line in lines]
  for product in products:
    product['pricing'] = ''.join(f'${price}' for price in product['pricing'])
  (folder / 'items_shuffle_1000.json').write_text(json.dumps(products))
  name = 'items_ins_v2_1000.json'
  (folder / name).write_bytes(shared_path(f'data/webshop/{name}').read_bytes())
  return str(folder)


def play(world, task, kind, seed=0):
  """Plays through prompts and responses; the last result and all exchanges."""
  env, expert, history = world.make_env(), world.expert(kind, seed), []
  observation = env.reset(task)
  expert.reset(task, observation)
  for _ in range(world.max_turns):
    thought, action = expert.plan(observation)
    assert world.render(task, history, observation)
    parsed = world.parse(world.response(thought, action), observation)
    assert parsed == ParsedAction(action, True)
    result = env.step(parsed.action)
    history.append(Exchange(observation.text, action))
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      break
  return result, history


def test_the_defaults_are_the_papers():
  world = WebshopWorld()
  assert (world.max_turns, world.history_length) == (15, 2)
  assert (world.prompt_style, world.parser) == ('paper', 'reference')
  assert (world.source, world.reward, world.size) == ('generated', 'success', 'small')
  assert not world.human_goals


def test_a_world_pickles_small_and_stays_itself():
  world = WebshopWorld(**SMALL)
  world.tasks('train'), world.make_env()
  data = pickle.dumps(world)
  assert len(data) < 2000
  copy = pickle.loads(data)
  assert copy.digest == world.digest
  assert copy.tasks('train')[3] == world.tasks('train')[3]
  assert copy.shop is world.shop
  assert world.skills_path.exists()


def test_environments_share_the_shop():
  world = WebshopWorld(**SMALL)
  assert world.make_env().shop is world.make_env().shop is world.shop


def test_the_digest_knows_every_setting():
  changes = [
    {},
    {'reward': 'score'},
    {'max_turns': 10},
    {'history_length': 3},
    {'prompt_style': 'paper'},
    {'parser': 'reference'},
  ]
  digests = [WebshopWorld(**{**SMALL, **change}).digest for change in changes]
  assert len(set(digests)) == len(changes)
  assert WebshopWorld(**SMALL).digest == digests[0]


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('source', 'web'),
    ('size', 'huge'),
    ('reward', 'money'),
    ('noun_source', 'oracle'),
    ('prompt_style', 'long'),
    ('parser', 'loose'),
    ('max_turns', 0),
    ('history_length', -1),
  ],
)
def test_a_wrong_setting_is_one_line(key, value):
  with pytest.raises(ValueError, match=rf'^config\.world\.{key}=.*must be .*$'):
    WebshopWorld(**{key: value})


@pytest.mark.parametrize('style', benchmark.STYLES)
@pytest.mark.parametrize('parser', ['reference', 'strict'])
def test_experts_play_through_prompts_and_responses(style, parser):
  world = WebshopWorld(prompt_style=style, parser=parser, noun_source='rule')
  assert world.demonstrators == ('informed', 'blind')
  for kind in world.demonstrators:
    for index in range(10):
      result, _ = play(world, world.tasks('valid_unseen')[index], kind, index)
      assert result.done and result.score is not None
      assert result.success or kind == 'blind'


def test_an_expert_of_another_name_is_one_line():
  with pytest.raises(ValueError, match=r"^expert 'oracle': must be one of .*$"):
    WebshopWorld().expert('oracle')


def first_page(world):
  return world.make_env().reset(world.tasks('train')[0])


@pytest.mark.parametrize(
  ('action', 'valid'),
  [
    ('search[velmo backpack]', True),
    ('search[x]', True),
    ('search[]', False),
    ('search[ ]', False),
    ('search', False),
    ('click[search]', False),
    ('click[buy now]', False),
    ('look around', False),
    ('', False),
  ],
)
def test_strict_parsing_admits_any_search_where_there_is_a_bar(action, valid):
  world = WebshopWorld(**SMALL)
  response = world.response('why not', action)
  parsed = world.parse(response, first_page(world))
  assert (parsed.action, parsed.valid) == (action.strip(), valid)


def test_strict_parsing_of_searches_and_links_elsewhere():
  world = WebshopWorld(**SMALL)
  page = Observation('', ('click[< prev]', 'click[red]', 'click[buy now]'))
  for action, valid in (
    ('search[velmo backpack]', False),
    ('click[red]', True),
    ('click[Red]', True),
    ('click[blue]', False),
    ('click[buy now]', True),
  ):
    assert world.parse(world.response('x', action), page).valid == valid


def test_strict_parsing_needs_all_tags_once():
  world, page = WebshopWorld(**SMALL), Observation('', ('click[red]',))
  for response in (
    '<action>click[red]</action>',
    '<think>a</think><action>click[red]',
    '<think>a</think><action>click[red]</action><action>click[red]</action>',
  ):
    assert not world.parse(response, page).valid


def test_reference_parsing_takes_the_end_of_an_untagged_response():
  world = WebshopWorld(noun_source='rule')
  response = 'I think that I would CLICK[BUY NOW] here'
  parsed = world.parse(response, Observation('', ()))
  assert parsed == ParsedAction(response.lower()[-20:], False)
  response = '<think>a</think><action> Click[Blue] </action>'
  assert world.parse(response, Observation('', ())) == ParsedAction('click[blue]', True)


def test_rewards():
  world, graded = WebshopWorld(**SMALL), WebshopWorld(**SMALL, reward='score')
  partial = 0
  for index in range(60):
    task = world.tasks('train')[index]
    result, history = play(world, task, 'blind', index)
    env = graded.make_env()
    env.reset(task)
    for exchange in history:
      other = env.step(exchange.action)
    assert other.score == result.score == other.reward
    assert result.reward == float(result.success) == float(result.score == 1.0)
    assert other.success == result.success
    partial += 0 < result.score < 1
  assert partial > 10


def test_mistakes_go_astray_but_do_not_end_the_episode():
  world, draws = WebshopWorld(**SMALL), np.random.default_rng(1)
  kinds = {}
  for index in range(40):
    env, observation = world.make_env(), first_page(world)
    env.reset(world.tasks('train')[index])
    for _ in range(10):
      action = world.mistake(observation, draws)
      known = engine.admits(observation.admissible, action)
      kinds[action.split('[')[0], known] = action
      result = env.step(action)
      assert not result.done
      observation = result.observation
  assert set(kinds) == {('search', True), ('click', True), ('click', False)}


def test_a_mistaken_search_names_no_line():
  world, draws = WebshopWorld(**SMALL), np.random.default_rng(2)
  lines = {line for row in generated.categories().values() for line in row.lines}
  queries = set()
  for index in range(80):
    task = world.tasks('train')[index]
    query = world.mistake(world.make_env().reset(task), draws)[7:-1]
    assert task.metadata['object'] in query.split()
    assert not lines & set(query.split())
    queries.add(len(query.split()))
  assert len(queries) >= 3


def test_the_done_page_has_nothing_to_click():
  world, draws = WebshopWorld(**SMALL), np.random.default_rng(3)
  result, history = play(world, world.tasks('train')[0], 'informed')
  assert result.observation.admissible == ()
  assert world.mistake(result.observation, draws).startswith('click[')
  assert world.render(world.tasks('train')[0], history, result.observation)


def test_all_tasks_find_their_skills():
  world = WebshopWorld(**SMALL)
  bank = bank_file.load(world.skills_path)
  for index in range(16):
    task = world.tasks('valid_unseen')[index]
    shown = bank.retrieve(task.metadata)
    assert shown[0].id == f'{task.task_type}1' and len(shown) > 10


def test_official_goals_are_the_same_kind_of_world(official):
  world = WebshopWorld('official', official, noun_source='rule')
  sizes = {split: len(world.tasks(split)) for split in ('train', 'valid', 'test')}
  assert sizes == {'train': 5410, 'valid': 1000, 'test': 500}
  task = world.tasks('test')[0]
  assert task == WebshopWorld('official', official).tasks('test')[0]
  env = world.make_env()
  observation = env.reset(task)
  history = []
  for action in (f'search[{task.payload.name}]', f'click[{task.payload.asin}]'):
    text = world.render(task, history, observation)
    assert text.count(task.goal) == 1
    history.append(Exchange(observation.text, action))
    observation = env.step(action.lower()).observation
  for _, value in task.payload.options:
    assert f'click[{value}]' in observation.admissible
    env.step(f'click[{value}]')
  assert env.step('click[buy now]').success
  bank = bank_file.load(world.skills_path)
  for index in range(50):
    assert bank.retrieve(world.tasks('train')[index].metadata)


def test_official_splits_share_no_instruction(official):
  world = WebshopWorld('official', official, noun_source='rule')
  seen = {}
  for split in ('train', 'valid', 'test'):
    tasks = world.tasks(split)
    for task in (tasks[index] for index in range(200)):
      assert task.task_id == f'official/{split}/{task.payload.goal_id}'
      assert seen.setdefault(task.goal, split) == split
      assert seen.setdefault(task.payload.goal_id, split) == split


def test_compact_prompts_can_show_official_pages(official):
  world = WebshopWorld('official', official, noun_source='rule', prompt_style='compact')
  draws = np.random.default_rng(4)
  for index in range(20):
    task, env, history = world.tasks('train')[index], world.make_env(), []
    observation = env.reset(task)
    for _ in range(8):
      assert world.render(task, history, observation).startswith(task.goal)
      action = world.mistake(observation, draws)
      history.append(Exchange(observation.text, action))
      observation = env.step(action).observation


def test_official_digests_know_the_data(official):
  world = WebshopWorld('official', official, noun_source='rule')
  digests = {world.tasks(split).digest for split in ('train', 'valid', 'test')}
  digests |= {WebshopWorld(**SMALL).tasks('train').digest, world.digest}
  assert len(digests) == 5


def test_official_files_that_are_not_there_are_one_line(tmp_path, monkeypatch):
  monkeypatch.delenv('WEBSHOP_DATA', raising=False)
  with pytest.raises(ValueError, match=r'config\.world\.data_dir or \$WEBSHOP_DATA'):
    WebshopWorld('official').tasks('train')
  with pytest.raises(ValueError, match='does not exist'):
    WebshopWorld('official', str(tmp_path / 'none')).tasks('train')
  with pytest.raises(FileNotFoundError, match='items_shuffle_1000') as error:
    WebshopWorld('official', str(tmp_path)).tasks('train')
  assert '\n' not in str(error.value)


def test_an_unknown_official_split_is_one_line(official):
  with pytest.raises(ValueError, match=r"^split 'dev': .*train, valid, test$"):
    WebshopWorld('official', official).tasks('dev')
  tasks = WebshopWorld('official', official).tasks('test')
  with pytest.raises(IndexError, match='test has 500 tasks'):
    tasks[500]


def test_too_few_goals_name_the_folder(official):
  world = WebshopWorld('official', official, noun_source='rule', human_goals=True)
  with pytest.raises(ValueError, match='need more goals than the') as caught:
    world.tasks('train')
  assert str(caught.value).startswith(f'{official} (size small): ')


def test_remote_folders_are_refused_in_one_line():
  world = WebshopWorld('official', 'gs://bucket/shop', noun_source='rule')
  with pytest.raises(ValueError, match='remote paths are not supported'):
    world.tasks('train')
