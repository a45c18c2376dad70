"""The engine against TextWorld's own words."""

import json
import lzma
import pickle
import random
import threading
from pathlib import Path

import problems
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path

from sdar_jax.envs.alfworld.engine import NOTHING_HAPPENS, AlfworldEnv, Game
from sdar_jax.envs.base import Task

GOLDEN = Path(__file__).parents[2] / 'golden/alfworld_rooms.jsonl.xz'


def read(path):
  with lzma.open(path, 'rt', encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


def task_of(problem, goal='do it.', grammar='new'):
  return Task('test', 'any', goal, {}, Game(problem, goal, grammar))


def mismatches(env, task, episode):
  """Replays a recorded episode; yields what differs, command first."""
  first = env.reset(task)
  if (first.text, list(first.admissible)) != (episode['intro'], episode['admissible']):
    yield 'intro', first
  for command, text, admissible, reward, done in episode['steps']:
    got = env.step(command)
    seen = (got.observation.text, list(got.observation.admissible))
    if (*seen, got.reward, got.done) != (text, admissible, reward, done):
      yield command, got
    assert got.success == got.done


def test_own_rooms_are_played_as_textworld_played_them():
  records = {record['name']: record for record in read(GOLDEN)}
  assert sum(len(record['steps']) for record in records.values()) > 600
  for name, text, script in problems.rooms():
    record = records[name]
    assert record['pddl_problem'] == text, 'run record_rooms.py again'
    assert [step[0] for step in record['steps'][: len(script)]] == script
    task = task_of(text, record['goal'])
    assert not list(mismatches(AlfworldEnv(), task, record)), name
  won = [step for record in records.values() for step in record['steps'] if step[4]]
  assert won, 'some walk reaches its goal'


@pytest.mark.parametrize('split, games', [('valid_seen', 140), ('valid_train', 200)])
def test_official_transcripts_are_byte_identical(split, games):
  texts = {
    game['id']: game for game in read(shared_path(f'data/alfworld/{split}.jsonl.xz'))
  }
  records = read(shared_path(f'golden/alfworld/{split}.jsonl.xz'))
  env, wrong, steps, won = AlfworldEnv(), [], 0, 0
  for record in records:
    game = texts[record['id']]
    task = task_of(game['pddl_problem'], game['task'])
    assert 'error' not in record and len(record['episodes']) == 2
    for episode in record['episodes']:
      wrong += [(record['id'], *what) for what in mismatches(env, task, episode)]
      steps += len(episode['steps'])
      won += any(step[4] for step in episode['steps'])
  assert not wrong, f'{len(wrong)} of {steps} steps differ, the first: {wrong[0]}'
  assert len(records) == games and steps > 4000 and won >= games


def test_old_grammar():
  """As TextWorld says it with alfworld 0.3.5's domain and grammar."""
  env = AlfworldEnv()
  problem = problems.build('pick', 'Apple', 'Desk')
  first = env.reset(task_of(problem, grammar='old'))
  assert 'help' not in first.admissible and 'look' in first.admissible
  exchanges = [
    (
      'go to countertop 1',
      # Locations are numbered like everything else: the first id has the last number.
      'You arrive at loc 2. On the countertop 1, you see a apple 1, a knife 1,'
      ' a lamp 1, and a mug 1.',
    ),
    (
      'take apple 1 from countertop 1',
      'You pick up the apple 1 from the countertop 1.',
    ),
    (
      'go to desk 1',
      'You arrive at loc 1. On the desk 1, you see a desklamp 1, and a mug 1.',
    ),
    ('move apple 1 to desk 1', NOTHING_HAPPENS),
    ('help', NOTHING_HAPPENS),
    ('put apple 1 in/on desk 1', 'You put the apple 1 in/on the desk 1.'),
  ]
  results = [env.step(command) for command, _ in exchanges]
  assert [r.observation.text for r in results] == [text for _, text in exchanges]
  assert 'put apple 1 in/on desk 1' in results[2].observation.admissible
  assert [r.reward for r in results] == [0, 0, 0, 0, 0, 1]


def walk(env, task, seed, steps):
  """Yields each result of a seeded walk."""
  rng = random.Random(seed)
  observation = env.reset(task)
  yield observation
  for _ in range(steps):
    result = env.step(rng.choice(observation.admissible))
    observation = result.observation
    yield result


def tasks():
  return [task_of(text, name) for name, text, _ in problems.rooms()]


def test_interleaved_environments_equal_sequential_ones():
  pairs = [(task, seed) for task in tasks() for seed in (0, 1)]
  alone = [list(walk(AlfworldEnv(), task, seed, 60)) for task, seed in pairs]
  walks = [walk(AlfworldEnv(), task, seed, 60) for task, seed in pairs]
  assert list(zip(*walks)) == list(zip(*alone))
  env = AlfworldEnv()
  assert [list(walk(env, task, seed, 60)) for task, seed in pairs] == alone


def test_threads_do_not_disturb_each_other():
  chosen = tasks()
  alone = [list(walk(AlfworldEnv(), task, 5, 80)) for task in chosen]
  found = [None] * len(chosen)

  def play(index):
    found[index] = list(walk(AlfworldEnv(), chosen[index], 5, 80))

  threads = [threading.Thread(target=play, args=(i,)) for i in range(len(chosen))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == alone


def test_pickled_in_mid_episode_it_goes_on_the_same():
  rng = random.Random(1)
  for task in tasks():
    env = AlfworldEnv()
    admissible = env.reset(task).admissible
    for _ in range(40):
      command = rng.choice(admissible)
      twin = pickle.loads(pickle.dumps(env))
      result = env.step(command)
      assert twin.step(command) == result
      assert (twin.state, twin.won) == (env.state, env.won)
      admissible = result.observation.admissible


def test_a_pickled_task_stays_small_and_plays_the_same():
  task = task_of(problems.build('pick', 'Apple', 'Desk'))
  expected = list(walk(AlfworldEnv(), task, 3, 30))
  again = pickle.loads(pickle.dumps(task))
  assert 'problem' not in again.payload.__dict__, 'the parsed problem is not sent along'
  assert list(walk(AlfworldEnv(), again, 3, 30)) == expected


def test_the_state_is_the_truth():
  env = AlfworldEnv()
  env.reset(task_of(problems.build('pick', 'Apple', 'Desk')))
  for command in ('go to fridge 1', 'open fridge 1', 'take apple 2 from fridge 1'):
    env.step(command)
  state, problem = env.state, env.problem
  assert problem.names[state.holding] == 'apple 2'
  assert state.location == problem.locations['fridge_bar_1']
  assert state.flags['opened'] == {'fridge_bar_1'}
  assert state.contents['fridge_bar_1'] == {'winebottle_bar_1'}
  assert state.holds(('iscool', 'apple_bar_1')) and state.holds(('holdsany', 'agent1'))
  assert not state.holds(('ishot', 'apple_bar_1'))
  assert env.commands['go to desk 1'] == ('go', 'desk_bar_1')
  assert env.commands['cool apple 2 with fridge 1'] == (
    'cool',
    'apple_bar_1',
    'fridge_bar_1',
  )


def test_every_admissible_command_does_something_and_no_other_does():
  env, rng = AlfworldEnv(), random.Random(2)
  for task in tasks():
    everything = set()
    for result in walk(AlfworldEnv(), task, 9, 200):
      everything.update(getattr(result, 'observation', result).admissible)
    admissible = env.reset(task).admissible
    for _ in range(60):
      before = pickle.dumps(env.state)
      for command in sorted(everything - set(admissible)):
        assert env.step(command).observation.text == NOTHING_HAPPENS
      assert pickle.dumps(env.state) == before
      result = env.step(rng.choice(admissible))
      assert result.observation.text != NOTHING_HAPPENS
      admissible = result.observation.admissible
      assert list(admissible) == sorted(set(admissible))


def test_space_around_a_command_does_not_matter():
  """As TextWorld answers; space within a command and case do matter."""
  env, task = AlfworldEnv(), task_of(problems.build('pick', 'Apple', 'Desk'))
  env.reset(task)
  looked = env.step('look')
  assert env.step(' look\n') == looked
  assert env.step('Look').observation.text == NOTHING_HAPPENS
  assert env.step('go  to desk 1').observation.text == NOTHING_HAPPENS


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.text('go takelmv1234/ \n\t\x00\ud800', max_size=200)))
def test_wild_text_does_nothing(action):
  env = AlfworldEnv()
  env.reset(task_of(problems.build('pick', 'Apple', 'Desk')))
  result = env.step(action)
  known = action.strip() in env.commands
  assert known or result.observation.text == NOTHING_HAPPENS
  assert result.reward == 0.0 and not result.done
