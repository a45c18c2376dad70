"""What slots hold, and how free ones are filled with prompts. No JAX.

A prompt less its last token is computed in chunks that begin at multiples of a fixed
size, by one program of one shape. The keys and values of a position are then a
function of the tokens up to it, to the bit, whichever slot they are computed in and
whatever is computed beside them: a prompt may take over the chunks of another one, and
nobody can tell. That holds for prompts only. A response is written by another program;
a prompt that repeats it computes it anew.

The name of a piece, cut at multiples of that size, is a digest of all tokens up to its
end, so that equal names mean equal prefixes. A slot holds the pieces of the last prompt
that it was given, until it is given another one.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def names(prefix: np.ndarray, chunk: int) -> tuple[bytes, ...]:
  """Names the pieces of a prefix, the last of which may be short."""
  out, before = [], b''
  for start in range(0, len(prefix), chunk):
    piece = prefix[start : start + chunk].tobytes()
    before = hashlib.blake2b(before + piece, digest_size=16).digest()
    out.append(before)
  return tuple(out)


class Prefixes:
  """Which slot holds which pieces, and which slots are free."""

  def __init__(self, order: Sequence[int]):
    """Holds nothing.

    Args:
      order: all slots, in the order in which they are given away at first.
    """
    self._free = dict.fromkeys(order)  # The least recently used first.
    self._held: dict[int, tuple[bytes, ...]] = {}
    # Who holds a piece, in the order of taking: what is still to be filled is last.
    self._holders: dict[bytes, dict[int, None]] = {}

  @property
  def free(self) -> int:
    """Counts the free slots."""
    return len(self._free)

  def longest(self, wanted: Sequence[bytes]) -> tuple[int, int | None]:
    """Finds the slot that holds the most of `wanted`: (pieces, slot)."""
    for count in range(len(wanted), 0, -1):
      for slot in self._holders.get(wanted[count - 1], ()):
        return count, slot
    return 0, None

  def longest_free(self, wanted: Sequence[bytes]) -> tuple[int, int | None]:
    """Finds the free slot that holds the most of `wanted`."""
    for count in range(len(wanted), 0, -1):
      few, many = self._holders.get(wanted[count - 1], {}), self._free
      if len(few) > len(many):
        few, many = many, few
      for slot in few:
        if slot in many:
          return count, slot
    return 0, None

  def oldest(self) -> int:
    """Finds the free slot whose last request ended first."""
    return next(iter(self._free))

  def take(self, slot: int, wanted: tuple[bytes, ...]) -> None:
    """Gives a free slot to a prompt, which it holds from now on."""
    del self._free[slot]
    self._drop(slot)
    self._held[slot] = wanted
    for name in wanted:
      self._holders.setdefault(name, {})[slot] = None

  def release(self, slot: int) -> None:
    """Frees a slot; what it holds stays."""
    self._free[slot] = None

  def forget(self) -> None:
    """Forgets what every slot holds."""
    self._held.clear()
    self._holders.clear()

  def _drop(self, slot: int) -> None:
    for name in self._held.pop(slot, ()):
      del self._holders[name][slot]
      if not self._holders[name]:
        del self._holders[name]


class Chunk(NamedTuple):
  """Tokens of a slot's prompt to compute: `ids` from position `start` on."""

  slot: int
  start: int
  ids: np.ndarray


@dataclasses.dataclass
class Wave:
  """What is done at a time: copies in their order, then chunks in theirs.

  Attributes:
    copies: (source, target) slots; no source changes in its wave before them.
    chunks: of slots, those of a slot from left to right.
  """

  copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)
  chunks: list[Chunk] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Admission:
  """How prompts come into slots.

  Attributes:
    slots: of every prompt.
    waves: to be done one after another.
    wanted: tokens of the prompts, less their last ones.
    kept: of those, the ones that the slot already held.
    copied: of those, the ones that come from another slot.
  """

  slots: list[int]
  waves: list[Wave]
  wanted: int
  kept: int
  copied: int


class _Filled(NamedTuple):
  """A slot of this plan: what it held before, and when it holds the rest."""

  kept: int
  wave: int


def plan(held: Prefixes, prompts: Sequence[np.ndarray], chunk: int) -> Admission:
  """Gives each prompt a free slot and takes from others what they hold.

  A prompt takes the free slot that holds the most of it, or else the one that was used
  least recently; where another slot holds more, that is copied first. A slot that is
  itself being filled is copied in a later wave. Those that find most in place choose
  first.

  What is copied is never overwritten before: a source holds more than any free slot,
  so that it is in use, or was given away by this very plan.

  Args:
    held: what slots hold; is told what they will hold.
    prompts: without their last tokens; no more than there are free slots.
    chunk: tokens of a chunk.

  Returns:
    The plan.
  """
  named = [names(prompt, chunk) for prompt in prompts]
  found = [held.longest_free(wanted)[0] for wanted in named]
  slots, waves = [0] * len(prompts), []
  filled: dict[int, _Filled] = {}
  kept = copied = 0
  for index in sorted(range(len(prompts)), key=lambda i: -found[i]):
    prompt, wanted = prompts[index], named[index]
    here, slot = held.longest_free(wanted)
    there, source = held.longest(wanted)
    if slot is None:
      slot = held.oldest()
    held.take(slot, wanted)
    slots[index], when = slot, 0
    if there > here:
      when = _after(filled.get(source), there)
      _wave(waves, when).copies.append((source, slot))
      copied += min(there * chunk, len(prompt))
    else:
      kept += min(here * chunk, len(prompt))
    filled[slot] = _Filled(here, when)
    for start in range(max(here, there) * chunk, len(prompt), chunk):
      piece = Chunk(slot, start, prompt[start : start + chunk])
      _wave(waves, when).chunks.append(piece)
  return Admission(slots, waves, sum(map(len, prompts)), kept, copied)


def _after(source: _Filled | None, pieces: int) -> int:
  """The first wave in which a slot can be copied for its first pieces."""
  return 0 if source is None or pieces <= source.kept else source.wave + 1


def _wave(waves: list[Wave], index: int) -> Wave:
  while len(waves) <= index:
    waves.append(Wave())
  return waves[index]


def calls(chunks: Sequence[Chunk], per_part: int, parts: int, rows: int) -> list:
  """Deals chunks to calls of one shape.

  Args:
    chunks: of a wave.
    per_part: slots of a part; consecutive slots are on one device.
    parts: of the cache, W.
    rows: of a part in a call.

  Returns:
    Per call, (row, chunk) pairs; the chunks of a slot in their order.
  """
  of_parts: list[list[Chunk]] = [[] for _ in range(parts)]
  for chunk in chunks:
    of_parts[chunk.slot // per_part].append(chunk)
  count = max((-(-len(some) // rows) for some in of_parts), default=0)
  out: list[list[tuple[int, Chunk]]] = [[] for _ in range(count)]
  for part, some in enumerate(of_parts):
    for number, chunk in enumerate(some):
      call, row = divmod(number, rows)
      out[call].append((part * rows + row, chunk))
  return out
