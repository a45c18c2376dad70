"""`--mode=describe`: every key of a config, its value, bound and meaning. No JAX."""

import inspect
import re
from collections.abc import Collection
from typing import Any

from sdar_jax import config as config_lib
from sdar_jax.envs import worlds

_ENTRY = re.compile(r'^ {2,4}(\w+): (.*(?:\n {6,}.*)*)', re.MULTILINE)


def table(config: Any) -> str:
  """Markdown-free text, a key a line: KEY = VALUE, then what it is.

  Args:
    config: a valid configuration.

  Returns:
    Lines; a value that is not the default of the package is marked `*`.
  """
  values = config_lib.flatten(config)
  defaults = config_lib.flatten(config_lib.default(values['world.name']))
  meanings = _documented(worlds.find(values['world.name']), 'world.')
  lines = ['Keys, *: not the default. Set one by --config.KEY=VALUE.']
  for name, value in values.items():
    key = config_lib.KEYS.get(name)
    changed = '*' if value != defaults[name] else ' '
    said = [key.meaning, _allowed(key.allowed), key.source] if key else []
    if not said:
      said = [meanings.get(name, '')]
    lines.append(f'{changed} {name} = {value!r}')
    lines.append(f'      {"; ".join(filter(None, said))}'.rstrip())
  return '\n'.join(lines) + '\n'


def _allowed(allowed: str | Collection[str]) -> str:
  if not isinstance(allowed, str):
    return 'one of ' + ', '.join(map(repr, allowed))
  return allowed


def _documented(owner: type, prefix: str) -> dict[str, str]:
  """What the docstring of a class says of its arguments."""
  entries = _ENTRY.findall(inspect.getdoc(owner) or '')
  return {prefix + name: ' '.join(text.split()).rstrip('.') for name, text in entries}
