"""Search-QA as one object: settings, splits, parsers, skills, shared retrieval."""

import json
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest

from sdar_jax.envs import base, worlds
from sdar_jax.envs.base import ParsedAction
from sdar_jax.envs.search_qa import datasets, engine, relations
from sdar_jax.envs.search_qa.world import SearchQAWorld
from sdar_jax.prompts import bank_file

ROOT = Path(__file__).resolve().parents[3]
SMALL = {'prompt_style': 'compact', 'parser': 'strict'}
BANKS = {
  'search_qa': ROOT / 'sdar_jax/envs/search_qa/skills.json',
  'tiny': ROOT / 'experiments/tiny/search_qa/skills.json',
}


def test_the_defaults_are_the_papers():
  world = SearchQAWorld()
  assert (world.max_turns, world.history_length) == (4, 4)
  assert (world.prompt_style, world.parser) == ('paper', 'reference')
  assert world.train_sets == ('nq', 'hotpotqa')
  assert world.data_sets == tuple(datasets.DATA_SETS)
  assert worlds.settings('search_qa')['topk'] == 3


def test_a_world_pickles_and_stays_itself():
  world = SearchQAWorld(**SMALL)
  task = world.tasks('train')[3]
  env = world.make_env()
  env.reset(task)
  before = env.step('<search>any mills native</search>')
  data = pickle.dumps(world)
  assert len(data) < 10_000  # The library does not travel.
  copy = pickle.loads(data)
  assert copy.digest == world.digest
  assert copy.tasks('train')[3] == task
  again = copy.make_env()
  again.reset(task)
  assert again.step('<search>any mills native</search>') == before
  assert pickle.loads(pickle.dumps(env)).step('') == env.step('')


def test_the_digest_knows_every_setting():
  changes = [
    {},
    {'topk': 2},
    {'max_characters': 100},
    {'max_turns': 5},
    {'history_length': 3},
    {'prompt_style': 'paper'},
    {'parser': 'reference'},
    {'retriever': 'http', 'url': 'http://127.0.0.1:8000/retrieve'},
  ]
  digests = [SearchQAWorld(**{**SMALL, **change}).digest for change in changes]
  assert len(set(digests)) == len(changes)


@pytest.mark.parametrize(
  ('settings', 'complaint'),
  [
    ({'source': 'web'}, "source='web': must be one of"),
    ({'retriever': 'lucene'}, "retriever='lucene': must be one of"),
    ({'shape': 'round'}, "shape='round': must be one of"),
    ({'prompt_style': 'long'}, "prompt_style='long': must be one of"),
    ({'parser': 'loose'}, "parser='loose': must be one of"),
    ({'topk': 0}, 'topk=0: must be at least 1'),
    ({'max_characters': 0}, 'max_characters=0: must be at least 1'),
    ({'max_turns': 0}, 'max_turns=0: must be at least 1'),
    ({'history_length': -1}, 'history_length=-1: must be at least 0'),
    ({'retriever': 'http'}, "url='': must be like http://"),
    ({'retriever': 'dense'}, "corpus='': must be set with retriever='dense'"),
    (
      {'retriever': 'dense', 'corpus': 'c.jsonl', 'index': 'i.npy'},
      "encoder='': must be set with retriever='dense'",
    ),
    ({'source': 'official'}, "data_dir='': must be set with source='official'"),
    (
      {'source': 'official', 'data_dir': 'q'},
      "corpus='': must be set with source='official'",
    ),
  ],
)
def test_a_wrong_setting_is_one_line(settings, complaint):
  with pytest.raises(ValueError) as caught:
    SearchQAWorld(**settings)
  assert str(caught.value).startswith(f'config.world.{complaint}')
  assert '\n' not in str(caught.value)


def test_experts_by_kind():
  world = SearchQAWorld()
  assert world.demonstrators == ('informed', 'blind')
  assert world.expert('blind', 4).seed == 4
  with pytest.raises(ValueError, match=r"^expert 'wise': must be one of"):
    world.expert('wise')


@pytest.mark.parametrize('parser', ['reference', 'strict'])
def test_responses_are_the_inverse_of_the_parsers(parser):
  world = SearchQAWorld(parser=parser)
  observation = base.Observation('')
  for index in range(40):
    task = world.tasks('train')[index]
    env, expert = world.make_env(), world.expert('blind', index)
    observation = env.reset(task)
    expert.reset(task, observation)
    for _ in range(4):
      thought, action = expert.plan(observation)
      response = world.response(thought, action)
      assert response.startswith(f'<think>{thought}</think><')
      assert world.parse(response, observation) == ParsedAction(action, True)
      result = env.step(action)
      observation = result.observation
      expert.observe(action, observation)
      if result.done:
        break


def test_a_response_keeps_its_first_word_apart_from_the_tag():
  response = SearchQAWorld().response('need native', '<search>al bo native</search>')
  assert response == '<think>need native</think><search> al bo native</search>'


def test_environments_keep_the_worlds_limits():
  env = SearchQAWorld(max_turns=2, max_characters=20).make_env()
  env.reset(SearchQAWorld().tasks('train')[0])
  shown, after = (env.step('<search>mills</search>').observation for _ in range(2))
  documents = engine.read_documents(shown.text)
  assert 0 < sum(len(hit.title) + len(hit.text) for hit in documents) <= 20
  assert after.text == ''  # A search on the last turn is not executed.


def test_parsers_differ_on_a_missing_thought():
  response, observation = '<search>x</search>', base.Observation('')
  for parser, valid in (('reference', True), ('strict', False)):
    parsed = SearchQAWorld(parser=parser).parse(response, observation)
    assert parsed == ParsedAction(response, valid)


def test_mistakes_are_plausible_searches():
  world, rng = SearchQAWorld(), np.random.default_rng(0)
  env, drawn = world.make_env(), set()
  observation = env.reset(world.tasks('train')[0])
  subject = relations.read(observation.text)[1]
  for _ in range(30):
    kind, query = engine.read_action(world.mistake(observation, rng))
    name, _, key = query.rpartition(' ')
    assert kind == 'search' and name == subject and key in relations.KEYS
    drawn.add(key)
  assert len(drawn) > 5
  found = env.step(f'<search>{subject}</search>').observation
  titles = {passage.title.lower() for passage in engine.read_documents(found.text)}
  _, query = engine.read_action(world.mistake(found, rng))
  assert query.rpartition(' ')[0] in titles
  for text in ('', engine.NO_ACTION, engine.format_documents([])):
    _, query = engine.read_action(world.mistake(base.Observation(text), rng))
    assert query in relations.KEYS


def test_a_turns_searches_are_answered_together():
  world, calls = SearchQAWorld(), []
  retriever = world.searcher.retriever

  class Counting:
    def search_many(self, queries, topk):
      calls.append(list(queries))
      return retriever.search_many(queries, topk)

  world.searcher._retriever = Counting()
  tasks = world.tasks('train')
  envs, actions = [], []
  for index in range(12):
    expert, env = world.expert('informed'), world.make_env()
    expert.reset(tasks[index], env.reset(tasks[index]))
    envs.append(env)
    actions.append(expert.plan(base.Observation(''))[1])
  actions[3], actions[4] = '<answer>x</answer>', 'nonsense'
  world.prefetch(actions)
  assert calls == [[a[8:-9] for a in actions if a.startswith('<search>')]]
  shown = [env.step(a).observation.text for env, a in zip(envs, actions, strict=True)]
  assert len(calls) == 1
  other = SearchQAWorld()
  for task, action, text in zip(tasks, actions, shown, strict=False):
    env = other.make_env()
    env.reset(task)
    assert env.step(action).observation.text == text


def test_an_unreachable_server_is_a_fault_and_no_observation():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]  # No one listens there any more.
  world = SearchQAWorld(retriever='http', url=f'http://127.0.0.1:{port}/retrieve')
  env, action = world.make_env(), '<search>x</search>'
  env.reset(world.tasks('train')[0])
  world.prefetch([action])
  with pytest.raises(base.EnvironmentFault) as caught:
    env.step(action)
  assert caught.value.kind == 'refused'


@pytest.fixture
def official(tmp_path):
  """A world of two data sets and three passages in files."""
  rows = [
    ('nq', 'who built the tower', ['Al Bo', 'A. Bo']),
    ('hotpotqa', 'where was the builder of the tower born?', ['Foo']),
  ]
  for split in ('train', 'test'):
    lines = [
      {'id': f'{split}_0', 'question': question, 'golden_answers': golden}
      | {'data_source': source}
      for source, question, golden in rows
    ]
    text = '\n'.join(map(json.dumps, lines))
    (tmp_path / f'{split}.jsonl').write_text(text)
  corpus = [
    {'title': 'Tower', 'text': 'The tower was built by Al Bo.'},
    {'title': 'Al Bo', 'text': 'Al Bo was born in Foo.'},
    {'title': 'Foo', 'text': 'Foo is a town.'},
  ]
  (tmp_path / 'corpus.json').write_text(json.dumps(corpus))
  return SearchQAWorld(
    'official',
    str(tmp_path),
    train_sets=('nq',),
    data_sets=('hotpotqa', 'nq'),
    corpus=str(tmp_path / 'corpus.json'),
    topk=1,
  )


def test_official_questions_are_the_same_kind_of_world(official):
  size = len(pickle.dumps(official))
  assert [task.task_type for task in official.tasks('train')] == ['nq']
  tests = official.tasks('test')
  assert tests is official.tasks('test')
  assert [task.task_type for task in tests] == ['hotpotqa', 'nq']
  env = official.make_env()
  observation = env.reset(tests[1])
  assert observation.text == 'who built the tower?'
  result = env.step('<search>tower builder</search>')
  documents = engine.read_documents(result.observation.text)
  assert [passage.title for passage in documents] == ['Tower']
  assert env.step('<answer>the a bo</answer>').success
  assert len(pickle.dumps(official)) == size  # Questions do not travel.
  assert pickle.loads(pickle.dumps(official)).digest == official.digest


def test_experts_do_not_answer_official_questions(official):
  expert, task = official.expert('blind'), official.tasks('test')[0]
  with pytest.raises(ValueError, match=r'generated library only'):
    expert.reset(task, official.make_env().reset(task))


@pytest.mark.parametrize('name', BANKS)
def test_every_question_has_its_skills(name, official):
  bank = bank_file.load(BANKS[name])
  assert bank.world == 'search_qa' and set(bank.objects) == set(relations.CHAINS)
  assert set(bank.task_types) == {s.task_type for s in datasets.DATA_SETS.values()}
  tasks = list(SearchQAWorld().tasks('valid_seen'))[:32]
  for task in [*tasks, *official.tasks('test')]:
    shown = bank.retrieve(task.metadata, 'task+object')
    about = [skill for skill in shown if skill in bank.objects.values()]
    assert len(about) == (task in tasks)
    assert len(shown) - len(about) >= (1 if name == 'tiny' else 10)


@pytest.mark.parametrize('name', BANKS)
def test_hints_name_the_words_that_find_the_facts_hop_by_hop(name):
  bank = bank_file.load(BANKS[name])
  keys = set(relations.KEYS)
  for task_type, chain in relations.CHAINS.items():
    text = bank.objects[task_type].principle
    quoted = text.replace("'", '').replace(';', '').replace(',', '').split()
    searched = [word.strip('.') for word in quoted if word.strip('.') in keys]
    wanted = [relation.key for relation in chain]
    assert list(dict.fromkeys(searched))[: len(wanted)] == wanted, task_type
    if name == 'tiny':
      assert text.split() == wanted
