"""One thread for the sampler: many clients' requests decode together."""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdar_jax.rollout.request import Completion, Request, SamplingParams
from sdar_jax.sampler.sampler import Sampler


class FullError(RuntimeError):
  """A full queue."""


class StoppedError(RuntimeError):
  """An engine at its end, or a broken computation."""


@dataclasses.dataclass(frozen=True)
class Partial:
  """A response so far: `ids` and `logprobs`, [n]."""

  ids: np.ndarray
  logprobs: np.ndarray


# Is told, in the engine's thread, `Partial`s where asked for, and at last a Completion
# or an error.
Tell = Callable[[Any], None]


@dataclasses.dataclass(frozen=True)
class _Asked:
  """A request of one client, and its listener."""

  request: Request
  tell: Tell
  partial: bool


class Engine:
  """Answers requests, until it is closed.

  Nothing but its thread touches the sampler; between two passes of decoding it takes
  what has come and forgets what was cancelled.

  Args:
    sampler: of the policy.
    most: requests at a time, those that wait included.
  """

  def __init__(self, sampler: Sampler, *, most: int):
    self._sampler, self._most = sampler, most
    self._changed = threading.Condition()
    self._inbox: collections.deque[_Asked] = collections.deque()
    self._live: dict[int, _Asked] = {}
    self._cancelled: set[int] = set()
    self._ended, self._numbers = False, itertools.count()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  @property
  def load(self) -> int:
    """Counts the requests waiting or decoding."""
    return len(self._inbox) + len(self._live)

  def ask(
    self,
    prompt_ids: np.ndarray,
    sampling: SamplingParams,
    identities: Sequence[tuple[int, ...]],
    tell: Callable[[int], Tell],
    *,
    partial: bool = False,
  ) -> list[int]:
    """Queues one request for each identity.

    Args:
      prompt_ids: [L] of all of them.
      sampling: of all of them.
      identities: of their random numbers.
      tell: makes of a choice's number who is told of it.
      partial: whether to tell of unfinished responses.

    Returns:
      Their numbers, for `cancel`.

    Raises:
      FullError: there is no room for them.
      StoppedError: it has ended.
    """
    with self._changed:
      if self._ended:
        raise StoppedError('the server is stopping')
      if self.load + len(identities) > self._most:
        raise FullError(f'{self.load} requests are waiting or decoding')
      numbers = [next(self._numbers) for _ in identities]
      for index, (number, identity) in enumerate(zip(numbers, identities)):
        request = Request(number, prompt_ids, sampling, identity)
        self._inbox.append(_Asked(request, tell(index), partial))
      self._changed.notify()
    return numbers

  def cancel(self, numbers: Sequence[int]) -> None:
    """Forgets requests and frees their slots; nobody is told any more."""
    with self._changed:
      self._cancelled.update(numbers)
      self._changed.notify()

  def close(self) -> None:
    """Ends the thread; who waits is told so."""
    with self._changed:
      self._ended = True
      self._changed.notify()
    self._thread.join()

  def _run(self) -> None:
    while True:
      with self._changed:
        while not (self._inbox or self._live or self._cancelled or self._ended):
          self._changed.wait()
        if self._ended:
          break
        new, gone = list(self._inbox), self._cancelled
        self._inbox.clear()
        self._cancelled = set()
        kept = [asked for asked in new if asked.request.request_id not in gone]
        self._live |= {asked.request.request_id: asked for asked in kept}
      try:
        self._pass(kept, gone)
      except Exception as error:  # Whatever is broken, the next request is answered.
        self._sampler.clear()
        self._fail(StoppedError(f'{type(error).__name__}: {error}'))
    self._sampler.cancel(list(self._live))
    self._fail(StoppedError('the server is stopping'))

  def _pass(self, new: Sequence[_Asked], gone: set[int]) -> None:
    """Takes requests in and out, decodes once, and tells."""
    live = self._live
    if gone:
      self._sampler.cancel(gone)
      for number in gone:
        live.pop(number, None)
    for asked in new:
      try:
        self._sampler.submit([asked.request])
      except ValueError as error:
        live.pop(asked.request.request_id).tell(error)
    if not live:
      return
    for done in self._sampler.advance():
      live.pop(done.request_id).tell(done)
    watched = [number for number, asked in live.items() if asked.partial]
    progress = self._sampler.progress() if watched else {}
    for number in watched:
      if number in progress:
        live[number].tell(Partial(*progress[number]))

  def _fail(self, error: Exception) -> None:
    with self._changed:
      waiting = [*self._inbox, *self._live.values()]
      self._inbox.clear()
      self._live.clear()
    for asked in waiting:
      asked.tell(error)


__all__ = ['Completion', 'Engine', 'FullError', 'Partial', 'StoppedError']
