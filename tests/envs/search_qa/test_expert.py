"""What scripted experts reach, and that they know no more than they have read."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sdar_jax.envs.base import Observation, Task
from sdar_jax.envs.search_qa import engine
from sdar_jax.envs.search_qa.expert import ScriptedExpert
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.envs.search_qa.world import SearchQAWorld

SPLITS = ('train', 'valid_seen', 'valid_unseen')


@pytest.fixture(scope='module')
def world():
  return SearchQAWorld(prompt_style='compact', parser='strict')


def play(world, task, kind, seed=0, mistakes=()):
  """(success, turns); in the turns of `mistakes` something else is played."""
  env, expert = world.make_env(), world.expert(kind, seed)
  rng = np.random.default_rng(seed)
  observation = env.reset(task)
  expert.reset(task, observation)
  for turn in range(1, world.max_turns + 1):
    _, action = expert.plan(observation)
    if turn in mistakes:
      action = world.mistake(observation, rng)
    result = env.step(action)
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      return result.success, turn
  return False, world.max_turns


def success(world, split, kind, count=320, **options):
  tasks = world.tasks(split)
  results = [play(world, tasks[i], kind, i, **options)[0] for i in range(count)]
  return sum(results) / count


@pytest.mark.parametrize('split', SPLITS)
def test_the_informed_expert_answers(world, split):
  assert success(world, split, 'informed') >= 0.98


@pytest.mark.parametrize('split', SPLITS)
def test_the_blind_expert_sometimes_does(world, split):
  assert 0.35 <= success(world, split, 'blind') <= 0.55


def test_the_informed_expert_wastes_no_turn(world):
  tasks = world.tasks('valid_seen')
  for index in range(64):
    hops = len(tasks[index].task_type.split('_'))
    assert play(world, tasks[index], 'informed') == (True, hops + 1)


def test_the_informed_expert_recovers_from_a_mistake(world):
  for turn in (1, 2):
    rate = success(world, 'valid_unseen', 'informed', mistakes=(turn,))
    assert rate >= 0.95, turn


@pytest.mark.parametrize('kind', ['informed', 'blind'])
def test_every_episode_ends_with_an_answer(world, kind):
  tasks = world.tasks('train')
  for index in range(100):
    env, expert = world.make_env(), world.expert(kind, index)
    observation = env.reset(tasks[index])
    expert.reset(tasks[index], observation)
    searched = set()
    for _ in range(4):
      thought, action = expert.plan(observation)
      assert (thought, action) == expert.plan(observation)  # May be asked again.
      assert action not in searched
      searched.add(action)
      result = env.step(action)
      observation = result.observation
      expert.observe(action, observation)
      if result.done:
        break
    assert result.done


def told(*texts):
  """The observation of made-up documents."""
  passages = [Passage(text.split(' was ')[0], f'{text}.') for text in texts]
  return Observation(engine.format_documents(passages))


def asked(kind, question, *episode):
  """What an expert plans after (action, observation) pairs."""
  expert = ScriptedExpert(kind)
  task = Task('t/0', 'any', 'not this', {}, None)
  expert.reset(task, Observation(question))
  for action, observation in episode:
    expert.observe(action, observation)
  return expert.plan(Observation('not this'))


def test_the_expert_believes_what_it_reads():
  question = 'Where was the founder of Zed Mills born?'
  first = ('<search>zed mills established</search>', Observation('nothing'))
  thought, action = asked('informed', question)
  assert (thought, action) == ('need established', first[0])
  found = told(
    'Zed Mills was purchased by Cy Doe', 'Zed Mills was established by Al Bo'
  )
  thought, action = asked('informed', question, (first[0], found))
  assert thought == 'found al bo need native'
  assert action == '<search>al bo native</search>'
  home = told('Cy Doe was a native of Port Foo', 'Al Bo was a native of Lake Bar')
  thought, action = asked('informed', question, (first[0], found), (action, home))
  assert (thought, action) == ('found lake bar', '<answer>lake bar</answer>')


def test_the_expert_tries_another_word_before_it_guesses():
  question = 'Who founded Zed Mills?'
  missed = (
    '<search>zed mills established</search>',
    told('Zed Mills was chaired by Cy Doe'),
  )
  for kind in ('informed', 'blind'):
    _, action = asked(kind, question, missed)
    assert action.startswith('<search>zed mills ') and action != missed[0]
    wasted = ('', Observation(engine.NO_ACTION))
    guess = ('guess cy doe', '<answer>cy doe</answer>')
    assert asked(kind, question, missed, wasted, wasted) == guess
  last = ('guess zed mills', '<answer>zed mills</answer>')
  assert asked('blind', question, wasted, wasted, wasted) == last


def test_guesses_are_of_the_right_kind():
  seen = (
    '<search>zed mills x</search>',
    told('Zed Mills was purchased by Cy Doe', 'Zed Mills runs a factory in Port Foo'),
  )
  where = asked('blind', 'Where is Zed Mills based?', seen, seen, seen)
  assert where[1] == '<answer>port foo</answer>'
  who = asked('blind', 'Who founded Zed Mills?', seen, seen, seen)
  assert who[1] == '<answer>cy doe</answer>'


def test_experts_know_the_generated_library_only():
  with pytest.raises(ValueError, match=r"^task t/0: experts .*source='generated'\)$"):
    asked('informed', 'Who won the cup in 1998?')


def first_words(seed):
  world = SearchQAWorld()
  tasks, expert = world.tasks('train'), world.expert('blind', seed)
  words = []
  for index in range(40):
    observation = Observation(tasks[index].goal)
    expert.reset(tasks[index], observation)
    words.append(expert.plan(observation)[0])
  return words


def test_the_blind_order_is_the_seeds():
  assert first_words(0) == first_words(0) != first_words(1)
  assert len(set(first_words(0))) > 10


def test_the_blind_order_does_not_depend_on_the_process():
  folders = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
  code = 'import test_expert as t; print(t.first_words(0))'
  result = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'PYTHONHASHSEED': '1', 'PYTHONPATH': folders},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == str(first_words(0))
