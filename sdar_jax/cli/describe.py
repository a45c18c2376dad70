"""Lists every key of a config and its meaning. Host, no JAX."""

import inspect
import re
from typing import Any

from sdar_jax import config as config_lib
from sdar_jax.envs import worlds
from sdar_jax.keys import Key

# An argument in a docstring, and the source that may end what is said of it.
_ENTRY = re.compile(r'^( +)(\w+): (.*(?:\n\1 +.*)*)', re.MULTILINE)
_SOURCE = re.compile(r' \(((?:ref|paper)\b[^()]*)\)')
_HEADINGS = ('key', 'default', 'allowed', 'meaning', 'source')


def table(config: Any) -> str:
  """Writes two lines a key: its value; its meaning, bound, source.

  Args:
    config: a valid configuration.

  Returns:
    Text; a value that is not the default of the package is marked `*`.
  """
  world = config.world.name
  defaults, known = config_lib.flatten(config_lib.default(world)), keys(world)
  lines = ['Keys, *: not the default. Set one by --config.KEY=VALUE.']
  for name, value in config_lib.flatten(config).items():
    key = known[name]
    changed = '*' if value != defaults[name] else ' '
    said = (key.meaning, _allowed(key), key.source)
    lines.append(f'{changed} {name} = {value!r}')
    lines.append(f'      {"; ".join(filter(None, said))}'.rstrip())
  return '\n'.join(lines) + '\n'


def markdown() -> str:
  """Writes Markdown: a table of keys, and one of each world's."""
  parts = []
  for world in worlds.WORLDS:
    known, values = keys(world), config_lib.flatten(config_lib.default(world))
    own = {name: key for name, key in known.items() if name.startswith('world.')}
    if not parts:
      rest = {name: key for name, key in sorted(known.items()) if name not in own}
      parts.append(_rows(rest, values))
    parts.append(f'`world.name={world}`:\n\n{_rows(own, values)}')
  return '\n'.join(parts)


def _rows(known: dict[str, Key], values: dict[str, Any]) -> str:
  lines = [_HEADINGS, ['---'] * len(_HEADINGS)]
  for name, key in known.items():
    value = f'`{values[name]!r}`'
    lines.append((f'`{name}`', value, _allowed(key), key.meaning, key.source))
  return ''.join(f'| {" | ".join(map(_cell, line))} |\n' for line in lines)


def _cell(text: str) -> str:
  return text.replace('|', '\\|').replace('<', '&lt;')


def keys(world: str) -> dict[str, Key]:
  """Collects every key of the configs of a world."""
  choices = ', '.join(worlds.WORLDS)
  named = Key(world, f"{choices}, or 'package.module:Class'")
  return config_lib.KEYS | {'world.name': named} | _settings(world)


def _settings(name: str) -> dict[str, Key]:
  """Reads a world's keys: its docstrings and declared limits."""
  world, meanings = worlds.find(name), {}
  for owner in reversed(world.__mro__):
    meanings |= _documented(owner)
  fields = getattr(world, '__dataclass_fields__', {})
  out = {}
  for setting, default in worlds.settings(name).items():
    limits = fields[setting].metadata if setting in fields else {}
    allowed = tuple(limits.get('choices', ()))
    least, most = limits.get('least'), limits.get('most')
    if least is not None or most is not None:
      low = '(-inf' if least is None else f'[{least}'
      allowed = f'{low}, inf)' if most is None else f'{low}, {most}]'
    meaning = meanings.get(setting, '')
    source = _SOURCE.search(meaning)
    out[f'world.{setting}'] = Key(
      default, _SOURCE.sub('', meaning), allowed or '', source[1] if source else ''
    )
  return out


def _allowed(key: Key) -> str:
  if not isinstance(key.allowed, str):
    return 'one of ' + ', '.join(map(repr, key.allowed))
  return key.allowed


def _documented(owner: type) -> dict[str, str]:
  """Reads the arguments in the docstring of a class."""
  text = inspect.cleandoc(owner.__doc__ or '')
  return {
    name: ' '.join(said.split()).rstrip('.')
    for _, name, said in reversed(_ENTRY.findall(text))  # Arguments, then attributes.
  }
