"""The adapter of foreign games, on games of our own: what holds, what is refused."""

import itertools
import random

import numpy as np
import pytest

from sdar_jax.envs import base, worlds
from sdar_jax.envs.adapters import agreement, foreign
from sdar_jax.envs.pool import pool, worker


def world(game, **settings):
  return worlds.make('game', {'maker': f'foreign_games:{game}', **settings})


def played(env, task, actions):
  seen = [env.reset(task)]
  return seen + [env.step(action) for action in actions]


def test_two_resets_that_agree_are_tasks_of_a_digest():
  made = world('Honest', arguments='{"most": 4}')
  tasks = made.tasks('train')
  assert len(tasks) == 10_000 and len(made.tasks('valid_unseen')) == 500
  ids = [tasks[0].task_id, tasks[1].task_id, made.tasks('valid_seen')[0].task_id]
  seeds = {split: made.tasks(split)[3].payload for split in foreign._SEEDS}
  assert len({*ids}) == 3 and len({*seeds.values()}) == 3
  same = world('Honest', arguments='{"most": 4}')
  assert same.digest == made.digest
  assert world('Honest', arguments='{"most": 5}').digest != made.digest
  assert made.make_env().reset(tasks[0]).text == 'a number up to 4'


@pytest.mark.parametrize(
  ('game', 'settings', 'says'),
  [
    ('Liar', {'probe': ('1',)}, 'two resets of task game//train/000000 differ'),
    ('Open', {}, 'no group would share a task'),
    ('Numbers', {}, 'its reset gave a list: only texts can be read'),
    ('Crash', {}, 'RuntimeError: no way'),
    ('Dies', {}, 'crash'),
    ('Honest', {'arguments': '{"size": 3}'}, "unexpected keyword argument 'size'"),
    ('Nothing', {}, "has no attribute 'Nothing'"),
  ],
)
def test_games_that_cannot_be_trained_on_are_one_line(game, settings, says):
  with pytest.raises(ValueError) as error:
    world(game, **settings).tasks('train')
  assert says in str(error.value) and '\n' not in str(error.value)


def test_a_liar_that_shows_nothing_is_found_by_a_probe_alone():
  """What the check cannot see it does not claim: the page says to give a probe."""
  assert world('Liar').tasks('train')


def test_what_is_no_python_file_has_a_version_too():
  for module in ('builtins', 'math', '_hashlib'):  # Built in, or compiled.
    assert foreign.version_of(f'{module}:x') == foreign.version_of(f'{module}:y') != ''


def test_a_game_that_hangs_is_one_line(monkeypatch):
  monkeypatch.setattr(agreement, 'DEADLINE', 0.5)
  monkeypatch.setattr(worker, '_START_SECONDS', 20.0)
  with pytest.raises(ValueError, match='hang'):
    world('Hangs').tasks('train')


def test_each_game_has_process_wide_generators_of_its_own():
  made = world('Dice')
  tasks = [made.task('train', i) for i in range(2)]
  alone = [played(made.make_env(), task, ['a', 'b', 'c']) for task in tasks]
  random.seed(7)
  np.random.seed(7)
  before = random.getstate(), np.random.get_state()[1].tolist()
  envs = [made.make_env() for _ in tasks]
  mixed = [[env.reset(task)] for env, task in zip(envs, tasks)]
  for action, i in itertools.product('abc', (1, 0)):
    mixed[i].append(envs[i].step(action))
  assert mixed == alone and alone[0] != alone[1]
  assert (random.getstate(), np.random.get_state()[1].tolist()) == before
  assert made.tasks('train')  # So its two resets agree, too.


def test_outcomes_depend_neither_on_workers_nor_on_company():
  made = world('Dice')
  starts = {i: made.task('train', i % 3) for i in range(6)}
  seen = []
  for workers in (0, 2):
    with pool.make(made, workers=workers, deadline=30, retries=0) as envs:
      first = envs.reset(starts)
      seen.append((first, [envs.step(dict.fromkeys(starts, 'x')) for _ in range(3)]))
  assert seen[0] == seen[1]
  assert seen[0][0][0] == seen[0][0][3] != seen[0][0][1]


@pytest.mark.parametrize(
  ('rule', 'actions', 'success'),
  [
    ({}, ['0', 'N'], True),
    ({'threshold': 1.2}, ['0', 'N'], False),
    ({'threshold': 1.2}, ['0', '0', 'N'], True),
    ({'threshold': 0.8}, [*'0000000', 'stop'], True),  # A sum of 0.7999999999999999.
    ({'success': 'reward'}, ['N'], True),
    ({'success': 'reward', 'threshold': 0.2}, ['0', '0', 'stop'], False),
    ({'threshold': 0.3}, ['0', '0', 'stop'], True),
    ({'success': 'foreign_games:twice'}, ['N'], False),
    ({'success': 'foreign_games:twice'}, ['0', 'N'], True),
  ],
)
def test_success_is_the_users_rule(rule, actions, success):
  made = world('Honest', **rule)
  env = made.make_env()
  task = made.task('train', 5)
  env.reset(task)
  number = str(random.Random(task.payload).randint(1, 9))
  results = [env.step(action.replace('N', number)) for action in actions]
  assert [r.done for r in results] == [False] * (len(actions) - 1) + [True]
  assert [r.success for r in results] == [False] * (len(actions) - 1) + [success]
  assert sum(r.reward for r in results) == pytest.approx(
    sum(1.0 if action == 'N' else 0.1 for action in actions)
  )


def test_a_game_is_closed_once_when_it_is_over_or_left(caplog):
  made = world('Closing')
  closed = foreign.imports.named('foreign_games:Closing').closed
  closed.clear()
  tasks = made.tasks('train')
  env = made.make_env()
  played(env, tasks[0], ['no', 'stop'])  # Over.
  assert len(closed) == 1
  played(env, tasks[1], ['no'])
  assert len(closed) == 1 and not caplog.records
  assert env.reset(tasks[2]).text == 'a number up to 9'  # Left.
  assert len(closed) == 2
  del env
  assert len(closed) == 3
  said = 'game: a game did not close: OSError: still in use'
  assert [record.getMessage() for record in caplog.records] == [said] * 2


def test_success_alone_can_be_what_is_paid():
  made = world('Honest', pays='success', threshold=1.05)
  env, task = made.make_env(), made.task('train', 5)
  number = str(random.Random(task.payload).randint(1, 9))
  for actions, paid in ((['0', number], [0.0, 1.0]), ([number], [0.0])):
    env.reset(task)
    assert [env.step(action).reward for action in actions] == paid


@pytest.mark.parametrize(
  ('action', 'says'),
  [
    ('number', 'its step gave a int'),
    ('reward', "a reward of 'much'"),
    ('nan', 'a reward of nan'),
    ('short', 'not enough values'),
    ('raise', 'KeyError'),
    ('lost', 'a reward of nan'),
    ('endless', 'a reward of inf'),
    ('flag', 'a reward of np.True_'),
    ('bytes', "a reward of b'1'"),
    ('word', "done='False': must be true or false"),
    ('nothing', 'done=None: must be true or false'),
    ('exit', 'SystemExit: 0'),
  ],
)
@pytest.mark.parametrize('pays', ['game', 'success'])
def test_what_a_step_does_wrong_is_a_fault(action, says, pays):
  made = world('Wild', pays=pays)
  with pool.make(made, workers=0, deadline=30, retries=0) as envs:
    envs.reset({0: made.task('train', 0)})
    answer = envs.step({0: action})[0]
  assert isinstance(answer, base.EnvironmentFault) and says in str(answer)


def test_an_action_of_another_form_never_reaches_the_game():
  made = world('Wild', action_pattern='[0-9]+|raise')
  env = made.make_env()
  env.reset(made.task('train', 0))
  result = env.step('number')
  assert (result.reward, result.done, result.success) == (0.0, False, False)
  assert '[0-9]+|raise' in result.observation.text
  with pytest.raises(KeyError):
    env.step('raise')
  seen = base.Observation('')
  assert made.parse(made.response('t', '7'), seen) == base.ParsedAction('7', True)
  assert made.parse(made.response('t', 'x'), seen) == base.ParsedAction('x', False)


def test_the_tag_is_the_users():
  seen = base.Observation('')
  made = world('Honest', action_tag='answer')
  assert made.instruction.endswith('between <answer> and </answer>.')
  said = made.response('why', '7')
  assert said == '<think>why</think><answer>7</answer>'
  assert made.parse(said, seen) == base.ParsedAction('7', True)
  assert not made.parse('<think>why</think><action>7</action>', seen).valid
  assert made.render(made.task('train', 0), (), seen).endswith(made.instruction)
  bare = world('Honest', action_tag='')
  assert bare.instruction == '' and bare.response('why', '7') == '7'
  assert bare.parse(' 7\n', seen) == base.ParsedAction('7', True)
  assert not bare.parse('  ', seen).valid


def test_observations_are_shortened_at_both_ends():
  made = world('Honest')
  text = 'a' * 500 + 'b' * 500
  for room in (0, 8, 100, 999):
    short = made.shorten(base.Observation(text), room).text
    assert len(short) <= max(room, 7) and '[...]' in short
  assert short.startswith('a' * 490) and short.endswith('b' * 490)
  assert made.shorten(base.Observation(text), 1000).text == text


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    ({'arguments': '{'}, 'config.world.arguments'),
    ({'arguments': '[1]'}, 'a JSON object'),
    ({'arguments': '[' * 4000}, 'config.world.arguments'),
    ({'arguments': '{"a": NaN}'}, 'NaN is no JSON number'),
    ({'action_pattern': '('}, 'config.world.action_pattern'),
    ({'action_pattern': '(' * 4000}, 'config.world.action_pattern'),
    ({'action_pattern': 'a{99999999999}'}, 'config.world.action_pattern'),
    ({'action_tag': 'a b'}, "config.world.action_tag='a b'"),
    ({'success': 'winning'}, "config.world.success='winning'"),
    ({'train_tasks': 0}, 'config.world.train_tasks=0'),
    ({'colour': 1}, 'has no setting colour'),
  ],
)
def test_wrong_settings_are_one_line(settings, says):
  with pytest.raises(ValueError) as error:
    world('Honest', **settings)
  assert says in str(error.value) and '\n' not in str(error.value)
