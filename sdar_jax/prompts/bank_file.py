"""Reading of skill banks, which anybody may have written. No JAX."""

import collections
import pathlib
from typing import Any

from sdar_jax import files
from sdar_jax.process import shipped
from sdar_jax.prompts.skills import Skill, SkillBank, SkillError

SCHEMA = 1
MAX_BANK_BYTES = 16 * 2**20  # The largest that ships has some 20 kB.

_BANK_KEYS = (
  'schema',
  'version',
  'world',
  'license',
  'heading',
  'bullet',
  'general',
  'task_types',
  'objects',
)
_SKILL_KEYS = ('id', 'title', 'principle', 'when')


def load(path: str | pathlib.Path) -> SkillBank:
  """Reads and checks a bank.

  Raises:
    SkillError: one line naming the file and the entry.
  """
  try:
    path = shipped.find(files.local_path(str(path), 'config.skills.path'))
    record = files.read_json(path, limit=MAX_BANK_BYTES)
    digest = files.digest(path)
  except (files.FileError, OSError) as error:
    raise SkillError(f'{error}; see config.skills.path') from None
  _check_keys(path, 'the bank', record, _BANK_KEYS)
  schema = record['schema']
  readable = type(schema) is int and schema == SCHEMA
  _check(path, 'schema', readable, f'is {_short(schema)}; this code reads {SCHEMA}')
  for key in ('version', 'world', 'license', 'heading', 'bullet'):
    _check(path, key, _is_text(record[key]), 'must be a string')
  for key in ('task_types', 'objects'):
    _check(path, key, isinstance(record[key], dict), 'must be an object')
    for name in record[key]:
      usable = _is_text(name) and name.splitlines() == [name]
      _check(path, key, usable, f'has the unusable key {_short(name)}')
  _check(path, 'task_types', record['task_types'], 'must not be empty')
  bank = SkillBank(
    version=record['version'],
    world=record['world'],
    heading=record['heading'],
    bullet=record['bullet'],
    general=_skills(path, 'general', record['general']),
    task_types={
      name: _skills(path, f'task_types.{name}', entries)
      for name, entries in record['task_types'].items()
    },
    objects={
      name: _skill(path, f'objects.{name}', entry)
      for name, entry in record['objects'].items()
    },
    digest=digest,
    path=str(path),
  )
  counts = collections.Counter(skill.id for skill in bank.everything())
  for skill_id, count in counts.items():
    _check(path, skill_id, count == 1, f'is the id of {count} skills')
  for name, skills in bank.task_types.items():
    _check(path, f'task_types.{name}', skills, 'must not be empty')
  return bank


def _check(path: Any, entry: str, condition: Any, complaint: str) -> None:
  if not condition:
    raise SkillError(f'{path}: {entry} {complaint}')


def _is_text(value: Any) -> bool:
  """Whether a value is a writable text, without half characters."""
  return isinstance(value, str) and not any('\ud800' <= c <= '\udfff' for c in value)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + '...'


def _check_keys(path: Any, entry: str, record: Any, keys: tuple[str, ...]) -> None:
  _check(path, entry, isinstance(record, dict), 'must be an object')
  missing = [key for key in keys if key not in record]
  unknown = sorted(set(record) - set(keys))
  _check(path, entry, not missing, f'lacks {missing}')
  _check(path, entry, not unknown, f'has unknown keys {_short(unknown)}')


def _skill(path: Any, entry: str, record: Any) -> Skill:
  _check_keys(path, entry, record, _SKILL_KEYS)
  for key in _SKILL_KEYS:
    value = record[key]
    _check(path, f'{entry}.{key}', _is_text(value), 'must be a string')
    _check(path, f'{entry}.{key}', value or key == 'when', 'must not be empty')
    _check(path, f'{entry}.{key}', value.splitlines() in ([], [value]), 'is not a line')
  return Skill(**record)


def _skills(path: Any, entry: str, records: Any) -> tuple[Skill, ...]:
  _check(path, entry, isinstance(records, list), 'must be a list')
  return tuple(
    _skill(path, f'{entry}[{index}]', item) for index, item in enumerate(records)
  )
