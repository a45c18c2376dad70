"""Gold answers as the public question sets publish them.

Each set's own metric decides what is gold: TriviaQA's aliases, MuSiQue's
`answer_aliases`, PopQA's `possible_answers` (a list as text), 2WikiMultihopQA's file of
aliases by `answer_id`. Lists that a table or a printed array has turned into text are
read back, never taken for one answer.

Source: the evaluation scripts of the sets: mandarjoshi90/triviaqa (normalised aliases
and human answers), StonyBrookNLP/musique (answer and answer_aliases),
Alab-NII/2wikimultihop (version 1.1, id_aliases.json), AlexTMallen/adaptive-retrieval.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdar_jax import files
from sdar_jax.envs import records

ALIASES = 'id_aliases.json'  # Of 2WikiMultihopQA, beside its questions.
_LISTS = ('golden_answers', 'answers', 'possible_answers')
_SINGLES = ('answer', 'Answer')
_TRIVIA = (  # Parts of an answer of TriviaQA, as first published and on the hub.
  *('Value', 'Aliases', 'NormalizedAliases', 'HumanAnswers'),
  *('value', 'aliases', 'normalized_aliases', 'human_answers'),
)
_ARRAY = re.compile(r'array\((.*?)(?:,\s*dtype=[\w.<>]+)?\)', re.DOTALL)
_QUOTED = re.compile(
  r'"[^"\\]*(?:\\.[^"\\]*)*"|\'[^\'\\]*(?:\\.[^\'\\]*)*\'', re.DOTALL
)
_BETWEEN = re.compile(r'\s*,\s*|\s+')

Aliases = Callable[[str], tuple[str, ...]]


def answers(row: Mapping[str, Any], aliases: Aliases) -> tuple[str, ...] | None:
  """Lists all gold answers of a row; None if it has no answer.

  Args:
    row: of a question set.
    aliases: of an `answer_id`, further gold answers.

  Raises:
    ValueError: what is wrong with the row.
  """
  if _flag(row, 'answerable') is False or _flag(row, 'is_impossible') is True:
    return None
  key = next((key for key in (*_LISTS, *_SINGLES) if key in row), None)
  if key is None:
    raise ValueError("has neither 'golden_answers' nor 'answer'")
  found = _values(row[key], key)
  more = _values(row.get('answer_aliases'), 'answer_aliases', none=True)
  if row.get('answer_id') not in (None, ''):
    more = [*more, *aliases(records.text(row, 'answer_id'))]
  kept = [gold for gold in found if gold.strip()]
  if not kept:
    raise ValueError(f'its {key!r} is empty')
  return (*kept, *dict.fromkeys(g for g in more if g.strip() and g not in kept))


def read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
  """Reads 2WikiMultihopQA's aliases and demonyms by answer_id."""
  found = {}
  for place, line in records.lines(path):
    row = files.parse_json(line, place)
    with records.naming(place):
      names = (*_values(row.get('aliases'), 'aliases', none=True),)
      names += (*_values(row.get('demonyms'), 'demonyms', none=True),)
      found[records.text(row, 'Q_id')] = names
  return found


def _flag(row: Mapping[str, Any], key: str) -> bool | None:
  """Reads a flag of a row, perhaps written as text."""
  value = row.get(key)
  value = {'true': True, 'false': False}.get(str(value).lower(), value)
  if value not in (None, '') and not isinstance(value, bool):
    raise ValueError(f'its {key!r} is {records.shown(value)}, not true or false')
  return value if isinstance(value, bool) else None


def _values(value: Any, key: str, none: bool = False) -> list[str]:
  """Reads the texts of a field: a text, a list, or a list as text."""
  if none and value in (None, '', []):
    return []
  if isinstance(value, dict):
    return _trivia(value, key)
  if isinstance(value, str):
    listed = decoded(value)
    if listed is None and key not in _SINGLES and value.lstrip().startswith('['):
      raise ValueError(f'its {key!r} is no list of texts: {records.shown(value)}')
    value = [value] if listed is None else listed
  if not isinstance(value, list) or not value:
    raise ValueError(f'its {key!r} is not a list of texts but {records.shown(value)}')
  if not all(isinstance(item, str) for item in value):
    raise ValueError(f'its {key!r} has something that is not a text')
  return value


def _trivia(answer: Mapping[str, Any], key: str) -> list[str]:
  """Lists all wordings of an answer of TriviaQA, each once."""
  parts = [name for name in _TRIVIA if answer.get(name) not in (None, [])]
  if not parts:
    raise ValueError(f'its {key!r} has none of {", ".join(_TRIVIA[:4])}')
  found = [_values(answer[name], name) for name in parts]
  return list(dict.fromkeys(gold for part in found for gold in part))


def decoded(text: str) -> list[str] | None:
  """Reads a list of texts printed by JSON, Python or NumPy, or None."""
  whole = _ARRAY.fullmatch(text.strip())
  text = whole[1].strip() if whole else text.strip()
  if not (text.startswith('[') and text.endswith(']')):
    return None
  try:
    value = json.loads(text)
    return value if all(isinstance(item, str) for item in value) else None
  except (ValueError, RecursionError):
    pass  # Not JSON: perhaps as Python or NumPy print it.
  inside, place, items = text[1:-1].strip(), 0, []
  while place < len(inside):
    gap = _BETWEEN.match(inside, place) if items else None
    place = gap.end() if gap else place
    item = _QUOTED.match(inside, place) if gap or not items else None
    if item is None:
      return None
    try:
      items.append(ast.literal_eval(item.group()))
    except (ValueError, SyntaxError):
      return None
    place = item.end()
  return items
