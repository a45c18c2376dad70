"""What the slots hold: the index behind the reuse of prompts. No JAX.

A prompt less its last token is cut at the multiples of a chunk. The name of a piece is
a digest of all tokens up to its end, so that equal names mean equal prefixes. A slot
holds the pieces of the last prompt that it was given, until it is given another one.
"""

import hashlib
from collections.abc import Sequence

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
