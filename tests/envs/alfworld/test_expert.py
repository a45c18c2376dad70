import dataclasses
import os
import random
import subprocess
import sys

import pytest
from oracle import OracleExpert
from shared import shared_path

from sdar_jax.envs.alfworld import generated, instruction
from sdar_jax.envs.alfworld.belief import RoomBelief, believe
from sdar_jax.envs.alfworld.engine import AlfworldEnv, Game
from sdar_jax.envs.alfworld.expert import ObservingExpert
from sdar_jax.envs.alfworld.generated import GeneratedGames
from sdar_jax.envs.alfworld.official import OfficialGames
from sdar_jax.envs.base import Exchange, Observation, Task


def play(task, env, expert, *, turns=50, mistakes=0.0, rng=None):
  """Turns until success, or None."""
  observation = env.reset(task)
  expert.reset(task, observation)
  for turn in range(1, turns + 1):
    action = expert.plan(observation)[1]
    assert action in observation.admissible
    if rng and rng.random() < mistakes:
      action = rng.choice(observation.admissible) + rng.choice(['', ' 9'])
    result = env.step(action)
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      return turn
  return None


def success(tasks, make, turns=50, **options):
  env = AlfworldEnv()
  results = [play(task, env, make(env), turns=turns, **options) for task in tasks]
  return sum(turn is not None for turn in results) / len(results)


def likely(env):
  return ObservingExpert('likely')


def blind(env):
  return ObservingExpert('blind', seed=3)


@pytest.fixture(scope='module')
def official():
  folder = str(shared_path('data/alfworld'))
  splits = [OfficialGames(folder, name) for name in ('valid_seen', 'valid_train')]
  return [task for split in splits for task in split]


@pytest.mark.parametrize('split', generated.SPLITS)
@pytest.mark.parametrize(('size', 'count'), [('small', 300), ('full', 100)])
def test_the_observing_expert_solves_generated_games(size, split, count):
  tasks = [GeneratedGames(split, size)[i] for i in range(count)]
  assert success(tasks, likely) >= 0.95


def test_knowing_likely_places_helps():
  tasks = [GeneratedGames('valid_unseen')[i] for i in range(200)]
  knowing, exploring = success(tasks, likely, turns=12), success(tasks, blind, turns=12)
  assert knowing >= 0.9
  assert 0.3 <= exploring <= 0.7


def test_the_experts_solve_official_games(official):
  assert len(official) == 340
  assert success(official, likely) >= 0.8
  assert success(official, OracleExpert) == 1.0


@pytest.mark.parametrize('make', [likely, blind, OracleExpert])
def test_experts_recover_from_mistakes(make):
  tasks = [GeneratedGames('valid_seen')[i] for i in range(150)]
  rng = random.Random(5)
  assert success(tasks, make, turns=100, mistakes=0.3, rng=rng) >= 0.98


def test_advice_depends_on_what_was_observed_and_on_nothing_else():
  env = AlfworldEnv()
  for index in range(20):
    task = GeneratedGames('train')[index]
    observation = env.reset(task)
    leader, follower = ObservingExpert('blind', 7), ObservingExpert('blind', 7)
    leader.reset(task, observation)
    follower.reset(task, observation)
    for _ in range(12):
      action = leader.plan(observation)[1]
      assert leader.plan(observation)[1] == action == follower.plan(observation)[1]
      result = env.step(action)
      observation = result.observation
      leader.observe(action, observation)
      follower.observe(action, observation)
      if result.done:
        break


def emptied(task, receptacle):
  """The same task with nothing in one receptacle."""
  lines = task.payload.pddl_problem.split('\n')
  kept = [x for x in lines if not (x[:13] == '(inReceptacle' and receptacle in x)]
  assert kept != lines
  return dataclasses.replace(task, payload=Game('\n'.join(kept), task.goal))


def test_the_observing_expert_cannot_see_through_doors():
  task = next(
    task
    for task in GeneratedGames('train')
    if 'Fridge_bar_01)' in task.payload.pddl_problem.split('(inReceptacle', 1)[1]
    and task.metadata['object'] == 'apple'
  )
  actions = []
  for variant in (task, emptied(task, ' Fridge_bar')):
    env, expert = AlfworldEnv(), ObservingExpert('likely')
    observation = env.reset(variant)
    expert.reset(variant, observation)
    for _ in range(2):
      actions.append(expert.plan(observation)[1])
      observation = env.step(actions[-1]).observation
      expert.observe(actions[-1], observation)
  assert actions == ['go to fridge 1', 'open fridge 1'] * 2


def first_choices(order, seed):
  env, chosen = AlfworldEnv(), []
  for index in range(30):
    task = GeneratedGames('train')[index]
    expert = ObservingExpert(order, seed)
    observation = env.reset(task)
    expert.reset(task, observation)
    chosen.append(expert.plan(observation)[1])
  return chosen


def test_the_blind_order_is_the_seeds():
  assert first_choices('blind', 0) == first_choices('blind', 0)
  assert first_choices('blind', 0) != first_choices('blind', 1)
  assert first_choices('likely', 0) == first_choices('likely', 1)


def test_the_blind_order_does_not_depend_on_the_process():
  path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
  result = subprocess.run(
    [
      sys.executable,
      '-c',
      "import test_expert as t; print(t.first_choices('blind', 0))",
    ],
    env={**os.environ, 'PYTHONHASHSEED': '1', 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == str(first_choices('blind', 0))


def test_the_target_of_a_plain_move_is_searched_last():
  intro = 'Looking quickly around you, you see a bed 1, a desk 1, and a garbagecan 1.'
  admissible = ('go to bed 1', 'go to desk 1', 'go to garbagecan 1', 'look')
  first = {}
  for target in ('bed', 'desk'):
    goal = f'put a laptop in {target}.'
    task = Task('laptop', instruction.PICK, goal, instruction.read(goal).metadata, None)
    expert = ObservingExpert('likely')
    observation = Observation(intro, admissible)
    expert.reset(task, observation)
    first[target] = expert.plan(observation)[1]
  assert first == {'bed': 'go to desk 1', 'desk': 'go to bed 1'}


def test_an_unknown_order_is_refused():
  with pytest.raises(ValueError, match="order 'best'"):
    ObservingExpert('best')


INTRO = (
  '-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking '
  'quickly around you, you see a cabinet 1, a fridge 1, and a sinkbasin 1.\n\n'
  'Your task is to: put a clean mug in cabinet.'
)


def read(*texts) -> RoomBelief:
  history = [Exchange(text, 'whatever') for text in texts[:-1]]
  return believe(history, Observation(texts[-1]))


def test_belief_of_the_beginning():
  belief = read(INTRO)
  assert belief.receptacles == ['cabinet 1', 'fridge 1', 'sinkbasin 1']
  assert belief.unsearched == belief.receptacles
  assert belief.here == belief.holding == ''


def test_belief_follows_an_episode():
  texts = [
    INTRO,
    'You arrive at fridge 1. The fridge 1 is closed.',
    'You open the fridge 1. The fridge 1 is open. In it, you see a mug 2, and a egg 1.',
    'You pick up the mug 2 from the fridge 1.',
    'You close the fridge 1.',
  ]
  belief = read(*texts[:2])
  assert belief.here == 'fridge 1' and belief.closed == {'fridge 1'}
  assert 'fridge 1' in belief.unsearched
  belief = read(*texts[:3])
  assert belief.contents == {'fridge 1': ['mug 2', 'egg 1']} and not belief.closed
  assert belief.places('mug') == [('mug 2', 'fridge 1')]
  belief = read(*texts)
  assert belief.holding == 'mug 2'
  assert belief.contents == {'fridge 1': ['egg 1']} and belief.closed == {'fridge 1'}


def test_belief_of_treatments_and_places():
  texts = [
    INTRO,
    'You pick up the mug 1 from the cabinet 1.',
    'You clean the mug 1 using the sinkbasin 1.',
    'You heat the mug 1 using the microwave 1.',
    'You cool the mug 1 using the fridge 1.',
    'You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.',
    'You move the mug 1 to the sinkbasin 1.',
    'Nothing happens.',
  ]
  belief = read(*texts)
  assert belief.states == {'mug 1': {'clean', 'cool'}}
  assert read(*texts[:-3], texts[3]).states == {'mug 1': {'clean', 'hot'}}
  assert belief.holding == '' and belief.contents['sinkbasin 1'] == ['mug 1']
  assert belief.failed and not read(*texts[:-1]).failed


def test_belief_ignores_what_is_inside_an_object_and_an_empty_look():
  belief = read(
    INTRO,
    'This is a normal bowl 1. In it, you see a fork 1.',
    'You are in the middle of a room. Looking quickly around you, you see nothing.',
  )
  assert belief.contents == {} and len(belief.receptacles) == 3
