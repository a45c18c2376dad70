"""The instruction of the generated shop, as words and as parts."""

import dataclasses
import re
from collections.abc import Mapping

_WORDINGS = (
  'Wanted: {attributes} {kind}, {options}, for less than {limit} dollars.',
  'Order this: {kind} with {options}. It has to be {attributes} and cost less than '
  '{limit} dollars.',
)
WORDINGS = len(_WORDINGS)
_FIELDS = {
  'attributes': r'(?P<attributes>[a-z]+(?: and [a-z]+)*)',
  'kind': r'(?P<kind>[a-z]+)',
  'options': r'(?P<options>[a-z]+ [a-z]+(?:, [a-z]+ [a-z]+)*)',
  'limit': r'(?P<limit>\d+)',
}
_PATTERNS = tuple(
  re.compile(re.sub(r'\\{(\w+)\\}', lambda m: _FIELDS[m[1]], re.escape(text)))
  for text in _WORDINGS
)


@dataclasses.dataclass(frozen=True, slots=True)
class ShopInstruction:
  """What to buy.

  Attributes:
    kind: of product, one word, e.g. 'backpack'.
    attributes: what it must be, one word each.
    options: name -> the value to choose, one word each.
    limit: its price must lie below, in whole dollars.
  """

  kind: str
  attributes: tuple[str, ...]
  options: Mapping[str, str]
  limit: int


def write(asked: ShopInstruction, wording: int) -> str:
  """Writes an instruction; `wording` counts from 0 to WORDINGS - 1."""
  return _WORDINGS[wording].format(
    attributes=' and '.join(asked.attributes),
    kind=asked.kind,
    options=', '.join(f'{name} {value}' for name, value in asked.options.items()),
    limit=asked.limit,
  )


def read(text: str) -> ShopInstruction | None:
  """Reads an instruction; None if `write` did not write it."""
  for pattern in _PATTERNS:
    match = pattern.fullmatch(text)
    if match:
      return ShopInstruction(
        kind=match['kind'],
        attributes=tuple(match['attributes'].split(' and ')),
        options=dict(pair.split(' ') for pair in match['options'].split(', ')),
        limit=int(match['limit']),
      )
  return None
