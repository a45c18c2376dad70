import collections
import hashlib
import os
import pickle
import subprocess
import sys

import pytest
from oracle import OracleExpert

from sdar_jax.envs.alfworld import generated, instruction, rooms
from sdar_jax.envs.alfworld.engine import AlfworldEnv
from sdar_jax.envs.alfworld.generated import GeneratedGames

# SHA-256 over the first games of every split and size: they are what papers refer to,
# so a change of theirs needs a new generated.VERSION and then a new value here.
PINNED = 'b0fc62cb3243b1a5a88d9ac836cd7f545bc714b22013378908a70f3744125dca'


def fingerprint() -> str:
  digest = hashlib.sha256()
  for size in rooms.SIZES:
    for split in generated.SPLITS:
      tasks = GeneratedGames(split, size)
      digest.update(tasks.digest.encode())
      for index in range(25):
        task = tasks[index]
        digest.update(repr((task.task_id, task.goal, task.metadata)).encode())
        digest.update(task.payload.pddl_problem.encode())
  return digest.hexdigest()


def test_games_are_pinned():
  assert fingerprint() == PINNED


@pytest.mark.parametrize('hash_seed', ['1', '2'])
def test_games_do_not_depend_on_the_process(hash_seed):
  program = 'import test_generated; print(test_generated.fingerprint())'
  path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
  result = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == fingerprint()


def test_a_task_does_not_depend_on_what_was_asked_before():
  tasks = GeneratedGames('train')
  late = tasks[777]
  assert tasks[776] != late
  assert tasks[777] == late
  assert GeneratedGames('train', train_tasks=800)[777] == late
  assert pickle.loads(pickle.dumps(late)) == late


def furniture(room: rooms.Room) -> tuple:
  counts = collections.Counter(item.kind for item in room.receptacles)
  return room.kind, tuple(sorted(counts.items()))


@pytest.mark.parametrize('size', rooms.SIZES)
def test_unseen_rooms_never_occur_in_training(size):
  layouts = {False: set(), True: set()}
  for unseen, count in generated.ROOMS_PER_KIND.items():
    for kind in rooms.KINDS:
      drawn = [rooms.draw_room(size, kind, unseen, i) for i in range(count)]
      layouts[unseen] |= {furniture(room) for room in drawn}
  assert not layouts[False] & layouts[True]
  assert len(layouts[False]) > 500
  assert len(layouts[True]) > 100


def test_splits_draw_from_their_side():
  for split in generated.SPLITS:
    for index in range(60):
      game = generated.layout('small', split, index)
      assert game.room.unseen == (split == 'valid_unseen')


def test_validation_games_are_not_training_games():
  problems = [
    {
      GeneratedGames(split)[i].payload.pddl_problem.split('\n', 1)[1]
      for i in range(400)
    }
    for split in ('train', 'valid_seen')
  ]
  assert not problems[0] & problems[1]


def test_task_types_come_in_the_stated_proportions():
  tasks = GeneratedGames('valid_unseen')
  counts = collections.Counter(tasks[i].task_type for i in range(500))
  assert counts == {
    instruction.PICK: 125,
    instruction.LOOK: 50,
    instruction.CLEAN: 100,
    instruction.HEAT: 50,
    instruction.COOL: 100,
    instruction.TWO: 75,
  }


def test_rooms_and_objects_vary():
  games = [generated.layout('small', 'train', i) for i in range(1000)]
  assert {game.room.kind for game in games} == set(rooms.KINDS)
  assert len({furniture(game.room) for game in games}) > 300
  assert len({game.asked.object for game in games}) > 45
  assert len({game.asked.target for game in games}) > 20
  assert {len(game.room.receptacles) for game in games} == set(range(6, 15))
  full = [generated.layout('full', 'train', i) for i in range(300)]
  sizes = [len(game.room.receptacles) for game in full]
  assert min(sizes) >= 10 and max(sizes) <= 32 and sum(sizes) / len(sizes) > 18


@pytest.mark.parametrize(
  ('size', 'split', 'count'),
  [('small', 'train', 1000), ('small', 'valid_unseen', 200), ('full', 'train', 200)],
)
def test_every_game_is_solvable_and_not_solved_at_the_start(size, split, count):
  env = AlfworldEnv()
  expert = OracleExpert(env)
  tasks = GeneratedGames(split, size)
  for index in range(count):
    task = tasks[index]
    observation = env.reset(task)
    assert not env.won
    assert not env.state.flags['opened']
    expert.reset(task, observation)
    for _ in range(15):
      result = env.step(expert.plan(observation)[1])
      observation = result.observation
      if result.done:
        break
    assert result.success, task.task_id


def test_likely_places_carry_most_of_the_mass():
  likely = total = 0
  for index in range(1000):
    game = generated.layout('small', 'train', index)
    weights = rooms.HOUSEHOLD.places[game.room.kind, game.asked.object]
    for name, where in game.objects:
      if name == game.asked.object:
        total += 1
        likely += where.kind in weights
        assert where.kind != game.asked.target
        assert name in rooms.HOUSEHOLD.contains[where.kind]
  assert 0.8 < likely / total < 0.95


def test_the_household_is_consistent():
  house = rooms.HOUSEHOLD
  for (_, name), weights in house.places.items():
    for kind in weights:
      assert name in house.contains[kind], (name, kind)
  for rows in house.furniture.values():
    assert set(rows) <= set(house.contains)
  assert house.openable == {'Cabinet', 'Drawer', 'Fridge', 'Microwave', 'Safe'}


@pytest.mark.parametrize('task_type', instruction.TASK_TYPES)
@pytest.mark.parametrize('variant', [0, 1])
def test_goals_are_read_as_they_were_written(task_type, variant):
  target = '' if task_type == instruction.LOOK else 'SideTable'
  asked = instruction.GameInstruction(
    task_type, 'ButterKnife', target, instruction.tool_of(task_type)
  )
  assert instruction.read(instruction.write(asked, variant)).metadata == asked.metadata


def test_goals_of_games_agree_with_their_metadata():
  tasks = GeneratedGames('valid_seen')
  for index in range(100):
    task = tasks[index]
    assert instruction.read(task.goal).metadata == task.metadata
    assert task.metadata['task_type'] == task.task_type


def test_an_unknown_goal_is_refused_in_one_line():
  with pytest.raises(ValueError, match=r"^goal 'tidy up'.*$"):
    instruction.read('tidy up')


def test_digests_tell_task_sets_apart():
  digests = [
    GeneratedGames('train').digest,
    GeneratedGames('train', 'full').digest,
    GeneratedGames('valid_seen').digest,
    GeneratedGames('valid_unseen').digest,
    GeneratedGames('train', train_tasks=10).digest,
  ]
  assert len(set(digests)) == 5
  assert GeneratedGames('train').digest == digests[0]


def test_wrong_requests_are_one_line():
  with pytest.raises(ValueError, match=r"^split 'test'.*valid_unseen$"):
    GeneratedGames('test')
  with pytest.raises(ValueError, match=r"^config\.world\.size='tiny'"):
    GeneratedGames('train', 'tiny')
  with pytest.raises(ValueError, match=r'^config\.world\.train_tasks=0'):
    GeneratedGames('train', train_tasks=0)
  tasks = GeneratedGames('train', train_tasks=5)
  assert len(list(tasks)) == len(tasks) == 5
  for index in (5, -1):
    with pytest.raises(IndexError, match='train has 5 tasks'):
      tasks[index]
