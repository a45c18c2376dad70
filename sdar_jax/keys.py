"""Keys of the configuration: default, meaning, allowed values. No JAX."""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any

# Integers cross to the device as int32. Numbers nearer to 0 than this are 0 in float32
# arithmetic on some devices, and larger ones overflow once they are squared.
LARGEST_INT = 2**31 - 1
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-30, 1e15
_LONGEST_TEXT = 4096  # Characters; no path is longer.
_SHOWN = 80  # Characters of a wrong value.


class ConfigError(ValueError):
  """A configuration that cannot run: one line with key and remedy."""


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of the configuration.

  Attributes:
    default: its value, whose type is the key's.
    meaning: in a few words, with the unit.
    allowed: the choices, or an interval such as '[1, inf)', '(0, 1]' or
      '0 or [0.1, 1]'; '' where the type says all. A table of choices may grow.
    source: where the default comes from: 'paper', 'ref' or ''.
  """

  default: Any
  meaning: str
  allowed: str | Collection[str] = ''
  source: str = ''

  def check(self, name: str, value: Any) -> None:
    """Raises ConfigError unless `name` may have this value."""
    by_choice = not isinstance(self.allowed, str)
    high = math.inf if by_choice or not self.allowed else _interval(self.allowed)[3]
    check_type(name, value, self.default, LARGEST_INT if high == math.inf else high)
    if by_choice:
      if value not in self.allowed:
        raise ConfigError(f'{_said(name, value)}: must be one of {tuple(self.allowed)}')
    elif self.allowed and not _admits(self.allowed, value):
      raise ConfigError(f'{_said(name, value)}: must be {_in_words(self.allowed)}')


def check_type(
  name: str, value: Any, default: Any, largest: float = LARGEST_INT
) -> None:
  """Checks a value against its default's type and the range of machines.

  Args:
    name: of the key.
    value: from a flattened config, where tuples are lists.
    default: the key's.
    largest: size of an integer at most.

  Raises:
    ConfigError: one line naming the key.
  """
  if isinstance(default, tuple):
    default = list(default)
  want = type(default)
  if type(value) is not want and not (want is float and type(value) is int):
    kind = type(value).__name__
    raise ConfigError(f'{_said(name, value)} is a {kind}: must be {want.__name__}')
  wanted = {type(part) for part in default} if want is list else set()
  for part in value if want is list else [value]:
    if wanted and type(part) not in wanted:
      names = ' or '.join(kind.__name__ for kind in wanted)
      raise ConfigError(f'{_said(name, value)}: must hold {names} only')
    complaint = _complaint(part, want is float, largest)
    if complaint:
      raise ConfigError(f'{_said(name, part)}: must be {complaint}')


def _complaint(value: Any, is_float: bool, largest: float) -> str:
  if isinstance(value, str):
    if len(value) > _LONGEST_TEXT:
      return f'a text of at most {_LONGEST_TEXT} characters'
    return '' if value.isprintable() else 'a text of printable characters'
  if is_float or isinstance(value, float):
    if not abs(value) < math.inf:
      return 'a finite number'
    fits = value == 0 or SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT
    return '' if fits else f'0, or in size from {SMALLEST_FLOAT} to {LARGEST_FLOAT}'
  large = type(value) is int and abs(value) > largest
  return f'at most {largest:.0f} in size' if large else ''


def _said(name: str, value: Any) -> str:
  shown = ascii(value) if isinstance(value, str) else str(value)
  if len(shown) > _SHOWN:
    shown = shown[: _SHOWN - 3] + '...'
  return f'config.{name}={" ".join(shown.split())}'


@functools.cache
def _interval(text: str) -> tuple[bool, float, bool, float, bool]:
  """Parses into (0 is allowed besides, low, with low, high, with high)."""
  zero, text = text.startswith('0 or '), text.removeprefix('0 or ')
  low, high = text[1:-1].split(',')
  return zero, float(low), text[0] == '[', float(high), text[-1] == ']'


def _admits(text: str, value: float) -> bool:
  zero, low, with_low, high, with_high = _interval(text)
  if zero and value == 0:
    return True
  above = value >= low if with_low else value > low
  return above and (value <= high if with_high else value < high)


def _in_words(text: str) -> str:
  zero, low, with_low, high, _ = _interval(text)
  if high < math.inf:
    return text if zero else f'in {text}'
  bound = f'at least {low:g}' if with_low else f'above {low:g}'
  return f'0 or {bound}' if zero else bound
