"""Shims against the packages themselves, each driven directly beside its adapter."""

import importlib
import json
import random
import sys

import pytest

from sdar_jax.envs import worlds


def adapted(name, index, actions, **settings):
  """What the adapter shows of a task: texts, rewards, ends; and the task's payload."""
  world = worlds.make(name, settings)
  task, env = world.task('train', index), world.make_env()
  seen = [env.reset(task).text]
  results = []
  for action in actions:
    results.append(env.step(action))
    if results[-1].done:
      break
  said = [(r.observation.text, r.reward, r.done, r.success) for r in results]
  return task.payload, seen[0], said


@pytest.mark.parametrize('index', [0, 3, 11])
def test_textarena_is_the_same_game(index):
  textarena = pytest.importorskip('textarena')
  actions = [f'[{n}]' for n in (10, 5, 15, 3, 8, 13, 18)]
  seed, first, said = adapted(
    'textarena', index, actions, env='GuessTheNumber-v0-raw', train_tasks=20
  )
  state = random.getstate()
  env = textarena.make('GuessTheNumber-v0-raw')
  env.reset(num_players=1, seed=seed)
  number = env.state.game_state['game_number']
  assert first == env.get_observation()[1][0][1].strip()
  for action, (text, reward, done, success) in zip(actions, said):
    over, _ = env.step(action)
    message = [text for who, text, _ in env.get_observation()[1] if who != 0]
    assert over is done
    if done:
      rewards, info = env.close()
      assert (reward, success) == (rewards[0], True) and info[0]['reason'] in text
      assert action == f'[{number}]'
    else:
      assert message == [text] and reward == 0.0 and not success
  assert done == (f'[{number}]' in actions)
  random.setstate(state)


def test_textarena_keeps_to_itself_and_agrees_with_itself():
  pytest.importorskip('textarena')
  settings = {'env': 'GuessTheNumber-v0-raw', 'action_pattern': r'\[\d+\]'}
  world = worlds.make('textarena', settings)
  tasks = world.tasks('train')  # Two processes agreed, on the hidden number, too.
  numbers = set()
  for index in range(40):
    env = world.make_env()
    env.reset(tasks[index])
    numbers.add(env.game.hidden())
  assert len(numbers) > 10
  assert not env.step('I give up').done  # Never seen by the game, which would raise.


@pytest.mark.parametrize('name', ['chain_sum', 'gcd', 'leg_counting'])
def test_reasoning_gym_asks_and_scores_the_same(name):
  package = pytest.importorskip('reasoning_gym')
  for index in (0, 5):
    seed, first, _ = adapted('reasoning_gym', index, [], env=name)
    data = package.create_dataset(name, seed=seed, size=1)
    assert first == data[0]['question']
    for answer in (data[0]['answer'], 'nonsense'):
      _, _, said = adapted('reasoning_gym', index, [answer], env=name)
      score = data.score_answer(answer=answer, entry=data[0])
      assert said == [(f'the answer scores {score:g}', score, True, score >= 1)]


@pytest.fixture
def rows(tmp_path):
  lines = [
    {'prompt': f'{i} and {i}?', 'reward_spec': {'ground_truth': str(2 * i)}}
    for i in range(4)
  ]
  lines[1]['prompt'] = [
    {'role': 'system', 'content': 'Add.'},
    {'role': 'user', 'content': '1 and 1?'},
  ]
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  (tmp_path / 'valid_seen.jsonl').write_text(json.dumps(lines[3]))
  return str(tmp_path)


def test_skyrl_gym_pays_the_same(rows):
  package = pytest.importorskip('skyrl_gym')
  for index, answer in ((0, '#### 0'), (2, 'it is #### 4'), (3, '4')):
    _, first, said = adapted('skyrl_gym', index, [answer], env='gsm8k', data_dir=rows)
    extras = {'reward_spec': {'ground_truth': str(2 * index)}}
    env = package.make('gsm8k', env_config={}, extras=extras)
    env.init([])
    expected = env.step(answer)
    assert first == f'{index} and {index}?'
    assert said == [('', expected['reward'], expected['done'], expected['reward'] == 1)]
  assert adapted('skyrl_gym', 1, [], env='gsm8k', data_dir=rows)[1] == 'Add.\n1 and 1?'


def test_skyrl_gyms_tasks_are_the_rows_of_files(rows, tmp_path):
  pytest.importorskip('skyrl_gym')
  world = worlds.make('skyrl_gym', {'env': 'gsm8k', 'data_dir': rows})
  tasks = world.tasks('train')
  assert len(tasks) == 4 and len(world.tasks('valid_seen')) == 1
  with pytest.raises(ValueError, match='valid_unseen'):
    world.tasks('valid_unseen')
  (tmp_path / 'train.jsonl').write_text('{"prompt": "2 and 2?"}')
  changed = worlds.make('skyrl_gym', {'env': 'gsm8k', 'data_dir': rows})
  with pytest.raises(ValueError, match='reward_spec field is required'):
    changed.tasks('train')
  with pytest.raises(ValueError, match=r'has no train\.jsonl'):
    worlds.make('skyrl_gym', {'env': 'gsm8k'}).tasks('train')


@pytest.mark.parametrize(
  ('line', 'says'),
  [
    (b'{}', 'its prompt is None'),
    (b'{"prompt": 1}', 'its prompt is 1'),
    (b'{"prompt": []}', r'its prompt is \[\]'),
    (b'{"prompt": ["add"]}', 'messages with a content'),
    (b'{"prompt": [{"content": null}]}', 'messages with a content'),
    (b'["prompt"]', 'must be an object'),
    (b'[' * 99_999, 'not JSON'),
    (b'"\xff"', "can't decode byte"),
  ],
)
def test_rows_of_another_form_are_named(rows, tmp_path, line, says):
  start = b'\xef\xbb\xbf{"prompt": "1 and 1?"}\n'  # As editors mark a file.
  (tmp_path / 'train.jsonl').write_bytes(start + line)
  world = worlds.make('skyrl_gym', {'env': 'gsm8k', 'data_dir': rows})
  with pytest.raises(ValueError, match=says) as error:
    world.rows('train')
  said = str(error.value)
  assert 'train.jsonl' in said and '\n' not in said
  assert 'line 2' in said or 'byte' in said


def test_gymnasium_is_the_same_game():
  gymnasium = pytest.importorskip('gymnasium')
  settings = {'maker': 'gymnasium_games:make', 'env': 'Echo'}
  seed, first, said = adapted('gymnasium', 2, ['a', 'bb', 'ccc'], **settings)
  env = importlib.import_module('gymnasium_games').make('Echo')
  assert isinstance(env, gymnasium.Env)
  assert first == env.reset(seed=seed)[0]
  for action, (text, reward, done, _) in zip(['a', 'bb', 'ccc'], said):
    expected = env.step(action)
    assert (text, reward) == expected[:2] and done == (expected[2] or expected[3])
  assert len(said) == 3 and done  # It was truncated.
  assert worlds.make('gymnasium', settings).tasks('train')
  with pytest.raises(ValueError, match='its reset gave a ndarray'):
    worlds.make('gymnasium', {'env': 'CartPole-v1'}).tasks('train')
  with pytest.raises(ValueError, match='Did you mean: `CartPole`'):
    worlds.make('gymnasium', {'env': 'CartPol-v1'}).tasks('train')


@pytest.mark.parametrize(
  ('name', 'settings', 'package'),
  [
    ('textarena', {'env': 'x'}, 'textarena'),
    ('gymnasium', {'env': 'x'}, 'gymnasium'),
    ('reasoning_gym', {'env': 'x'}, 'reasoning-gym'),
    ('openenv', {}, 'websockets'),
  ],
)
def test_a_package_that_is_missing_is_named(name, settings, package, monkeypatch):
  module = package.replace('-', '_')
  for known in [name for name in sys.modules if name.partition('.')[0] == module]:
    monkeypatch.delitem(sys.modules, known)
  monkeypatch.setitem(sys.modules, module, None)  # An import then fails.
  world = worlds.make(name, settings)
  with pytest.raises(ValueError, match=f"pip install '{package}'") as error:
    world.tasks('train')
  assert '\n' not in str(error.value)
