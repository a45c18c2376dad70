"""What a compiled program sends between devices, read from its text."""

import collections
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4}
_BYTES |= {'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# %name = shapes kind(...): a start and its done are one, counted at the start.
_LINE = re.compile(
  rf'^\s*(?:ROOT )?%?\S+ = (.*?) ({"|".join(KINDS)})(-start)?\(', re.MULTILINE
)
_SHAPE = re.compile(r'\b([a-z]+[0-9]*)\[([0-9,]*)\]')


class Collective(NamedTuple):
  """One operation between devices, by the largest array that it gives."""

  kind: str
  dtype: str
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """Bytes of that array."""
    return _BYTES[self.dtype] * math.prod(self.shape)


def collectives(text: str) -> list[Collective]:
  """Lists the operations between devices of an HLO module's text."""
  out = []
  for shapes, kind, _ in _LINE.findall(text):
    arrays = [
      Collective(kind, dtype, tuple(int(n) for n in dims.split(',') if n))
      for dtype, dims in _SHAPE.findall(shapes)
      if dtype in _BYTES
    ]
    out.append(max(arrays, key=lambda array: array.size))
  return out


def summary(found: Iterable[Collective]) -> list[str]:
  """Formats operations, the largest first, equal ones counted."""
  counts = collections.Counter(found)
  order = sorted(counts, key=lambda one: (-one.size, one))
  return [
    f'{counts[one]:3d} x {one.kind} {one.dtype}{list(one.shape)}'
    f' {one.size / 2**20:.3g} MiB'
    for one in order
  ]
