"""The worlds by name. A world's settings are the fields of its class."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from sdar_jax.envs import base, imports

# 'package.module:Class', imported only when asked for.
WORLDS = {
  'alfworld': 'sdar_jax.envs.alfworld.world:AlfworldWorld',
  'webshop': 'sdar_jax.envs.webshop.world:WebshopWorld',
  'search_qa': 'sdar_jax.envs.search_qa.world:SearchQAWorld',
  'game': 'sdar_jax.envs.adapters.foreign:GameWorld',
  'gymnasium': 'sdar_jax.envs.adapters.gymnasium:GymnasiumWorld',
  'textarena': 'sdar_jax.envs.adapters.textarena:TextArenaWorld',
  'reasoning_gym': 'sdar_jax.envs.adapters.reasoning_gym:ReasoningGymWorld',
  'skyrl_gym': 'sdar_jax.envs.adapters.skyrl_gym:SkyrlGymWorld',
  'openenv': 'sdar_jax.envs.adapters.openenv:OpenEnvWorld',
}
_PLAIN = (bool, int, float, str, tuple)  # What a config can hold.


def find(name: str) -> type[base.World]:
  """Finds and checks the class of a world.

  Args:
    name: a key of `WORLDS`, or 'package.module:Class' of a world from elsewhere.

  Raises:
    ValueError: there is no such world, or one line with all that it lacks.
  """
  path = WORLDS[name] if name in WORLDS else name
  if ':' not in path:
    known = ', '.join(WORLDS)
    raise ValueError(
      f"config.world.name={name!r}: must be one of {known}, or 'package.module:Class'"
    )
  try:
    found = imports.named(path)
  except imports.NamedError as error:
    raise ValueError(f'config.world.name={name!r}: {error}') from None
  faults = list(_faults(found))
  if faults:
    raise ValueError(f'config.world.name={name!r}: class {path} {"; ".join(faults)}')
  return found


def _faults(world: Any) -> Iterator[str]:
  """Lists everything missing or wrong in a world's class."""
  if not (inspect.isclass(world) and issubclass(world, base.World)):
    yield 'must be a subclass of sdar_jax.envs.base.World'
    return
  if '__dataclass_params__' not in vars(world):
    yield 'needs @dataclasses.dataclass(frozen=True)'
  if not isinstance(world.name, str) or not world.name:
    yield "needs name = '...'"
  own = lambda key: getattr(world, key) is not getattr(base.World, key)
  if not own('make_env'):
    yield 'needs make_env(self)'
  if not own('read_tasks') and not own('tasks'):
    if 'train' not in world.splits:
      yield "needs splits = {'train': SIZE, ...}"
    if not own('task'):
      yield 'needs task(self, split, index)'
  for key, method in inspect.getmembers(base.World, inspect.isfunction):
    if not key.startswith('_') and own(key):
      yield from _call_faults(key, getattr(world, key), inspect.signature(method))
  for key, parameter in inspect.signature(world).parameters.items():
    if not isinstance(parameter.default, _PLAIN):
      yield f'needs a bool, int, float, str or tuple as default of its setting {key}'
    if key != 'max_turns' and hasattr(base.World, key):
      yield f'has a setting {key}, a name that every world has already'


def _call_faults(key: str, method: Any, wanted: inspect.Signature) -> Iterator[str]:
  """Compares a method's parameters with the base class's."""
  required = [p for p in wanted.parameters.values() if p.default is p.empty]
  try:
    inspect.signature(method).bind(*required)
  except (TypeError, ValueError):
    yield f'must have {key}({", ".join(p.name for p in required)})'


def settings(name: str) -> dict[str, Any]:
  """Lists the settings of a world with their defaults.

  Raises:
    ValueError: there is no such world, or it is not whole.
  """
  return {field.name: field.default for field in dataclasses.fields(find(name))}


def make(name: str, values: Mapping[str, Any]) -> base.World:
  """Makes a world from its settings, plain values of a config.

  Raises:
    ValueError: one line with all that is wrong with its class or its settings.
  """
  found = find(name)
  unknown = sorted(set(values) - {field.name for field in dataclasses.fields(found)})
  if unknown:
    raise ValueError(f'world {name} has no setting {", ".join(unknown)}')
  return found(**values)
