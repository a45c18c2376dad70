"""The table of worlds: names, settings and lines about what is wrong."""

import pickle

import pytest

from sdar_jax import config as config_lib
from sdar_jax.envs import worlds


class Doorless:
  """A world whose setting has no default."""

  def __init__(self, door):
    self.door = door


def test_config_holds_exactly_the_arguments_of_the_world():
  for name in ('alfworld',):
    room = config_lib.default(name).world.to_dict()
    assert room.pop('name') == name
    assert room == worlds.settings(name)
    world = worlds.make(name, room)
    assert world.name == name and world.max_turns == room['max_turns']


def test_a_maker_crosses_to_another_process():
  values = {**worlds.settings('alfworld'), 'size': 'small', 'max_turns': 7}
  make = pickle.loads(pickle.dumps(worlds.maker('alfworld', values)))
  assert make().max_turns == 7 and make().digest == make().digest


@pytest.mark.parametrize(
  'name, words',
  [
    ('chess', 'must be one of alfworld'),
    ('no.such.module:World', 'No module named'),
    ('sdar_jax.envs.base:Chess', 'Chess'),
    (f'{__name__}:Doorless', "'door' has no default"),
  ],
)
def test_a_wrong_world_is_one_line(name, words):
  with pytest.raises(ValueError, match=words) as error:
    worlds.settings(name)
  assert '\n' not in str(error.value)


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
