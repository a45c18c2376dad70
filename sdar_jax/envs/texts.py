"""Cuts texts, replaces unencodable characters, tells of actions."""

import re
from collections.abc import Sequence

CUT = ' ...'  # Ends a text that goes on.
_SURROGATES = re.compile('[\ud800-\udfff]')


def cut(text: str, characters: int) -> str:
  """Cuts a text at a word's end and puts `CUT` after it.

  Args:
    text: any.
    characters: the longest that the result may be; below `len(CUT)` it is `CUT`.
  """
  if len(text) <= characters:
    return text
  head = text[: max(characters - len(CUT), 0)]
  if head and not head[-1].isspace() and not text[len(head)].isspace():
    head = re.sub(r'\s\S*\Z', '', head)  # A text of one word is cut inside it.
  return head.rstrip() + CUT


def fair_limit(lengths: Sequence[int], total: int) -> int:
  """Finds the largest cap on lengths to keep their sum within `total`."""
  left, limit = total, 0
  for done, length in enumerate(sorted(lengths)):
    limit = left // (len(lengths) - done)
    if length > limit:
      return limit
    left -= length
  return max(limit, *lengths, 0)


def encodable(text: str) -> str:
  """Replaces lone surrogates, impossible in UTF-8, by U+FFFD."""
  return _SURROGATES.sub('\ufffd', text)


def actions_since(before: Sequence[str], now: Sequence[str]) -> str:
  """Writes which actions are possible, or what has changed if shorter.

  Args:
    before: those of the turn before; none at the first.
    now: those of this turn.
  """
  listed = lambda head, actions: '\n- '.join([head, *actions])
  whole = listed('Actions possible now:', now)
  new = [action for action in now if action not in before]
  gone = [action for action in before if action not in now]
  parts = [listed('Also possible now:', new)] if new else []
  parts += [listed('No longer possible:', gone)] if gone else []
  changed = '\n'.join(parts) or 'The same actions are possible.'
  return changed if before and len(changed) < len(whole) else whole
