"""Config files behind the cells of a study, and how they are told method and seed."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import alfworld, search_qa, webshop
from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.cli import config_file
from sdar_jax.methods import table

WORLDS = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}
_PROBE = ('grpo', 7919)  # A method that no file refuses, a seed that none has.


@dataclasses.dataclass(frozen=True)
class Source:
  """A Python file with `get_config`, which every cell of a study starts from.

  Attributes:
    path: of the file, as a command can name it.
    argument: what follows its colon, without method and seed; '' for nothing.
    listens: it takes algo=METHOD and seed=N in its argument, as those of experiments
      do. The keys of any other file are set after it was read.
    method: the file's own; '' where it listens.
  """

  path: str
  argument: str
  listens: bool
  method: str = ''

  def text(self, method: str, seed: int) -> str:
    """Writes the value of a cell's --config."""
    return _joined(self.path, self._argument(method, seed))

  def settings(self, method: str, seed: int) -> dict[str, Any]:
    """Collects the keys to be set after reading, of a file that does not listen.

    Its own method is trained as the file has it. Another one takes the numbers of its
    row, and those of the file's method are at their defaults again.
    """
    if self.listens:
      return {}
    if method == self.method:
      return {'seed': seed}
    config = self._call(self.argument)
    usual = config_lib.flatten(config_lib.default(config.world.name))
    left = {key: usual[key] for key in table.find(self.method).all_settings}
    taken = {**left, **table.find(method).all_settings}
    return {'seed': seed, 'algorithm.name': method, **taken}

  def config(
    self, method: str, seed: int, overrides: Mapping[str, Any]
  ) -> ml_collections.ConfigDict:
    """Makes a cell's config as its training will, checked.

    Args:
      method: of the table.
      seed: of the run.
      overrides: flattened keys and their values, `settings` among them.

    Raises:
      ValueError: one line; KeyError and TypeError of wrong overrides.
    """
    config = self._call(self._argument(method, seed)).lock()
    config.update_from_flattened_dict(dict(overrides))
    config_lib.validate(config)
    config_lib.resolve_paths(config)
    return config

  def _argument(self, method: str, seed: int) -> str:
    return _told(self.argument, method, seed) if self.listens else self.argument

  def _call(self, argument: str) -> ml_collections.ConfigDict:
    return call(self.path, argument)


def of_world(name: str) -> Source:
  """Finds the experiment of a world, with the small model."""
  # By its own path: not one of its name where a study is started.
  return Source(WORLDS[name].__file__, 'model=tiny', listens=True)


def find(text: str) -> Source:
  """Finds FILE.py or FILE.py:ARGUMENT, and out whether it listens.

  Raises:
    ValueError: one line: there is no such file, it fails, or its argument says what
      only a study may.
  """
  path, _, argument = (text, '', '') if '://' in text else text.partition(':')
  items = [item for item in argument.split(',') if item]
  said = [item for item in items if item.startswith(('algo=', 'seed='))]
  rest = ','.join(item for item in items if item not in said)
  try:
    config = call(path, _told(rest, *_PROBE))
    listens = (config.algorithm.name, config.seed) == _PROBE
  except (ValueError, AttributeError):
    listens = False
  if listens and said:
    raise ValueError(
      f'{text}: leave out {" and ".join(said)}: the study says method and seed'
    )
  if listens:
    return Source(path, rest, listens)
  config = call(path, argument)
  config_lib.validate(config)
  return Source(path, argument, listens, config.algorithm.name)


def call(path: str, argument: str) -> ml_collections.ConfigDict:
  """Calls `get_config` of a file; an empty argument is none."""
  place = files.local_path(path, '--config')
  said = f'--config={_joined(path, argument)}'
  return config_file.call_file(pathlib.Path(place), said, *filter(None, [argument]))


def _told(argument: str, method: str, seed: int) -> str:
  return ','.join([*filter(None, [argument]), f'algo={method}', f'seed={seed}'])


def _joined(path: str, argument: str) -> str:
  return f'{path}:{argument}' if argument else path
