"""The worlds by name. A world's settings are the arguments of its constructor."""

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from sdar_jax.envs import base

# 'package.module:Class', imported only when asked for.
WORLDS = {
  'alfworld': 'sdar_jax.envs.alfworld.world:AlfworldWorld',
  'webshop': 'sdar_jax.envs.webshop.world:WebshopWorld',
  'search_qa': 'sdar_jax.envs.search_qa.world:SearchQAWorld',
}


def find(name: str) -> type:
  """The class of a world.

  Args:
    name: a key of `WORLDS`, or 'package.module:Class' of a world from elsewhere.

  Raises:
    ValueError: there is no such world.
  """
  path = WORLDS[name] if name in WORLDS else name
  module, colon, attribute = path.partition(':')
  if not colon:
    known = ', '.join(WORLDS)
    raise ValueError(
      f"config.world.name={name!r}: must be one of {known}, or 'package.module:Class'"
    )
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(f'config.world.name={name!r}: {error}') from None


def settings(name: str) -> dict[str, Any]:
  """The settings of a world with their defaults: its constructor's arguments.

  Raises:
    ValueError: there is no such world, or an argument has no default.
  """
  out = {}
  for key, parameter in inspect.signature(find(name)).parameters.items():
    if parameter.default is inspect.Parameter.empty:
      raise ValueError(f'world {name}: its setting {key!r} has no default')
    out[key] = parameter.default
  return out


def make(name: str, values: Mapping[str, Any]) -> base.World:
  """A world from its settings, plain values that cross to another process.

  Raises:
    ValueError: one line naming the setting that is wrong.
  """
  return find(name)(**values)


def maker(name: str, values: Mapping[str, Any]) -> functools.partial:
  """A picklable function without arguments that makes the world."""
  return functools.partial(make, name, dict(values))
