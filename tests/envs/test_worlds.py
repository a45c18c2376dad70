"""The table of worlds: names, settings and lines about what is wrong."""

import dataclasses
import pickle
import zlib
from typing import ClassVar

import numpy as np
import pytest

from sdar_jax import config as config_lib
from sdar_jax.envs import base, worlds
from sdar_jax.envs.adapters import foreign
from sdar_jax.envs.search_qa.retrieval import dense


class Stranger:
  """No world at all."""

  def __init__(self, door):
    self.door = door


class Forgetful(base.World):
  """Lacks what a world must have, and has a method of the wrong form."""

  def render(self, task, history):
    """One argument too few."""


@dataclasses.dataclass(frozen=True)
class Open(base.World):
  """Whole but for its settings."""

  name = 'open'
  splits: ClassVar = {'train': 3}
  doors: list = dataclasses.field(default_factory=list, kw_only=True)
  walls: dict = dataclasses.field(kw_only=True)

  def make_env(self):
    """None."""

  def task(self, split, index):
    """None."""


@dataclasses.dataclass(frozen=True)
class Annotated(Open):
  """Takes its name for a setting."""

  name: str = 'annotated'
  doors: int = 0
  walls: int = 0


@dataclasses.dataclass(frozen=True)
class Bells(base.World):
  """The smallest world that is whole: ring the right one of some bells."""

  name = 'bells'
  splits: ClassVar = {'train': 5, 'valid_seen': 2}
  bells: int = base.setting(4, least=2)
  sound: str = base.setting('ding', choices=('ding', 'dong'))

  def task(self, split, index):
    """A bell."""
    bell = str(index % self.bells)
    return base.Task(f'{split}/{index}', 'bell', f'ring bell {bell}', {}, bell)

  def make_env(self):
    """Nothing to play."""
    return object()


def test_config_holds_exactly_the_arguments_of_the_world():
  for name in worlds.WORLDS:
    room = config_lib.default(name).world.to_dict()
    assert room.pop('name') == name
    assert room == worlds.settings(name)
    world = worlds.make(name, room)
    assert world.name == name and world.max_turns == room['max_turns']


def test_a_world_from_elsewhere_needs_tasks_and_environments_only():
  name = f'{__name__}:Bells'
  world = worlds.make(name, {'bells': 3})
  assert worlds.settings(name) == {'max_turns': 50, 'bells': 4, 'sound': 'ding'}
  assert (world.bells, world.sound, world.skills_path) == (3, 'ding', None)
  tasks = world.tasks('train')
  assert [task.payload for task in tasks] == ['0', '1', '2', '0', '1']
  assert world.tasks('train') is tasks and len(world.tasks('valid_seen')) == 2
  with pytest.raises(IndexError, match='task 5: train has 5 tasks'):
    tasks[5]
  with pytest.raises(ValueError, match=r"^split 'test': must be one of train, valid"):
    world.tasks('test')
  with pytest.raises(ValueError, match=r"world bells has no expert of kind ''"):
    world.expert(world.demonstrators[0])


def test_a_world_pickles_as_its_settings():
  world = Bells(bells=3)
  world.tasks('train')
  data = pickle.dumps(world)
  copy = pickle.loads(data)
  assert data == pickle.dumps(Bells(bells=3)), 'tasks do not travel'
  assert copy == world and copy.digest == world.digest
  assert copy.tasks('train')[4] == world.tasks('train')[4]


def test_the_digest_of_a_world_knows_every_setting():
  made = (Bells(), Bells(bells=3), Bells(sound='dong'), Bells(max_turns=3))
  assert len({world.digest for world in made}) == len(made)
  splits = {Bells().tasks(split).digest for split in Bells.splits}
  assert len(splits) == 2 and Bells().digest not in splits


def test_the_default_prompt_tells_task_past_and_actions():
  world, task = Bells(), Bells().tasks('train')[1]
  past = [base.Exchange(f'saw {i}', f'did {i}') for i in range(4)]
  seen = base.Observation('now', ('ring 1', 'wait'))
  assert world.render(task, base.History(past, 2), seen) == (
    'Your task: ring bell 1\n\n'
    'Turns taken so far: 4. The last 2:\n'
    'Turn 3, you saw: saw 2\nTurn 3, you did: did 2\n'
    'Turn 4, you saw: saw 3\nTurn 4, you did: did 3\n\n'
    'Turn 5, you see: now\n\n'
    f'Actions possible now:\n- ring 1\n- wait\n\n{world.instruction}'
  )
  assert 'Turns taken so far: 4.\n\n' in world.render(task, base.History(past, 0), seen)
  bare = world.render(task, (), base.Observation('now'))
  assert bare == (
    f'Your task: ring bell 1\n\nTurn 1, you see: now\n\n{world.instruction}'
  )


def test_the_default_parser_is_the_inverse_of_the_default_response():
  world, seen = Bells(), base.Observation('', ('ring 1', 'wait'))
  for text in ('ring 1', 'wait'):
    parsed = base.ParsedAction(text, True)
    assert world.parse(world.response('any', text), seen) == parsed
  assert not world.parse(world.response('any', 'sing'), seen).valid
  free = base.Observation('')  # Which lists nothing: any words may do.
  assert world.parse(world.response('any', 'sing'), free).valid
  assert not world.parse(world.response('any', ''), free).valid
  draws = np.random.default_rng(0)
  assert {world.mistake(seen, draws) for _ in range(40)} == set(seen.admissible)


def test_all_wrong_settings_are_one_line():
  with pytest.raises(ValueError) as error:
    worlds.make(f'{__name__}:Bells', {'bells': 1, 'sound': 'dung', 'max_turns': 0})
  assert str(error.value) == (
    'config.world.max_turns=0: must be at least 1;'
    ' config.world.bells=1: must be at least 2;'
    " config.world.sound='dung': must be one of ('ding', 'dong')"
  )
  with pytest.raises(ValueError, match='has no setting doors, walls'):
    worlds.make(f'{__name__}:Bells', {'walls': 1, 'doors': 2})


@pytest.mark.parametrize(
  'source, says',
  [
    ('def f(:', 'line 1: SyntaxError: invalid syntax'),
    ('x = 1\nx = y', "line 2: NameError: name 'y' is not defined"),
    ("\nopen('/no/such')", 'line 2: FileNotFoundError: [Errno 2] No such file'),
    ("raise RuntimeError('two\\nlines')", 'line 1: RuntimeError: two lines'),
    ("import sys\nsys.exit('no licence')", 'line 2: SystemExit: no licence'),
    ('', "has no attribute 'Named'"),
  ],
)
def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch, source, says):
  """Whatever a user's own module raises, for all settings that name one."""
  name = f'broken_{zlib.crc32(source.encode())}'
  (tmp_path / f'{name}.py').write_text(source)
  monkeypatch.syspath_prepend(tmp_path)
  name = f'{name}:Named'
  game = foreign.GameWorld(maker=name, success=name)
  calls = [lambda: worlds.find(name), lambda: dense.load_encoder(name)]
  calls += [lambda: game.find('maker'), lambda: game.find('success')]
  for call in calls:
    with pytest.raises(ValueError) as error:
      call()
    assert name in str(error.value) and says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, words',
  [
    (':Named', ['Empty module name']),
    ('..up:Named', ['relative import']),
    ('chess', ['must be one of alfworld']),
    ('no.such.module:World', ['No module named']),
    ('sdar_jax.envs.base:Chess', ['Chess']),
    ('json:dumps', ['must be a subclass of sdar_jax.envs.base.World']),
    (f'{__name__}:Stranger', ['must be a subclass of sdar_jax.envs.base.World']),
    (
      f'{__name__}:Forgetful',
      [
        f'class {__name__}:Forgetful needs @dataclasses.dataclass(frozen=True)',
        "needs name = '...'",
        'needs make_env(self)',
        "needs splits = {'train': SIZE, ...}",
        'needs task(self, split, index)',
        'must have render(self, task, history, observation)',
      ],
    ),
    (
      f'{__name__}:Open',
      ['default of its setting doors', 'tuple as default of its setting walls'],
    ),
    (f'{__name__}:Annotated', ['has a setting name, a name that every world has']),
  ],
)
def test_all_that_a_world_lacks_is_one_line(name, words):
  for call in (worlds.settings, lambda name: worlds.make(name, {})):
    with pytest.raises(ValueError) as error:
      call(name)
    said = str(error.value)
    assert '\n' not in said and name in said
    assert all(word in said for word in words), said
    assert said.count('; ') == len(words) - 1


@pytest.mark.parametrize(
  'key, value',
  [
    ('max_turns', 0),
    ('history_length', -1),
    ('train_tasks', 0),
    ('size', 'huge'),
    ('grammar', 'latin'),
    ('source', 'web'),
  ],
)
def test_a_wrong_setting_is_one_line_that_names_its_key(key, value):
  values = {**worlds.settings('alfworld'), key: value}
  with pytest.raises(ValueError, match=f'config.world.{key}=') as error:
    worlds.make('alfworld', values)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['alfworld', 'webshop', 'search_qa'])
@pytest.mark.parametrize('style', ['paper', 'compact'])
def test_what_follows_in_a_conversation_is_what_is_new(name, style):
  """The prompt with the past told ends alike; what was seen before is not repeated."""
  world = worlds.make(name, {**worlds.settings(name), 'prompt_style': style})
  task, env = world.tasks('valid_seen')[0], world.make_env()
  observation, past = env.reset(task), []
  for _ in range(3):
    said = world.follow_up(task, base.History(past), None, observation)
    assert f'{len(past) + 1}' in said
    assert not world.instruction or world.instruction not in said
    told = world.render(task, base.History(past, 0), observation)
    assert style == 'compact' or told.endswith(f'{said}\n\n{world.instruction}')
    for action in observation.admissible:
      assert action in said or action == 'help'
    action = world.mistake(observation, np.random.default_rng(len(past)))
    past.append(base.Exchange(observation.text, action))
    observation = env.step(action).observation


def test_actions_are_told_by_what_has_changed_where_that_is_shorter():
  many = [f'go to shelf {i}' for i in range(9)]
  before, now = base.Observation('', tuple(many)), [*many[1:], 'take mug 1']
  said = Bells().follow_up(None, (), before, base.Observation('a mug', tuple(now)))
  assert said == (
    'Turn 1, you see: a mug\n\n'
    'Also possible now:\n- take mug 1\nNo longer possible:\n- go to shelf 0'
  )
  told = lambda one, other: base.actions_since(one, other).split('\n')
  assert told(many, many) == ['The same actions are possible.']
  assert told(many, ['a', 'b']) == ['Actions possible now:', '- a', '- b']
  assert told((), many) == ['Actions possible now:', *(f'- {text}' for text in many)]
