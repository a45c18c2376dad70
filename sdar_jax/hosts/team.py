"""A process among several: shares values, compares them, watches."""

import contextlib
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from sdar_jax import files
from sdar_jax.process.team import LOST, Alone, PeerError
from sdar_jax.process.terminal import WRONG_INPUT
from sdar_jax.rollout.episodes import Interrupted

_LEAST_ROOM = 2**16  # Bytes: smaller values share one compiled program.
_FOR_EVER = 7 * 24 * 3600 * 1000  # Milliseconds.
_SHOWN = 60  # Characters of a value that differs.
_T = TypeVar('_T')


class LostError(RuntimeError):
  """Another process died or hung: the run cannot go on."""

  exit_code = LOST


class Team(Alone):
  """One process of several, after `jax.distributed.initialize`.

  Whatever a process does before it shares the next value, it can be told there that
  another one has ended: an error is a value, too.

  Args:
    seconds: without progress, until this process is ended. Where it waits for others it
      is not watched: they are, and `jax.distributed` notices their death.

  Attributes:
    lost: another process is gone, so that nothing can be shared any more.
  """

  def __init__(self, seconds: float):
    self.index, self.count = jax.process_index(), jax.process_count()
    self.lost = self._waiting = False
    self._seconds, self._round = seconds, 0
    self._wait = multihost.get_barrier_sync_fn()
    self._beat, self._closed = time.monotonic(), threading.Event()
    threading.Thread(target=self._watch, daemon=True).start()

  def share(self, value: Any) -> list[Any]:
    """Gives the values of all processes, in order; waits for all."""
    records = self._gather({'value': value})
    for index, record in enumerate(records):
      if 'value' not in record:
        self.ended = True
        if record['stop']:
          raise Interrupted
        raise PeerError(f'process {index}: {record["error"]}', record['code'])
    return [record['value'] for record in records]

  def each(self, act: Callable[[], _T], *, leader: bool = False) -> _T | None:
    """Acts on every process; where one fails all raise, and wait so long."""
    failure, result = None, None
    try:
      result = super().each(act, leader=leader)
    except Exception as error:  # Raised below, when the others know.
      failure = error
    said = self.share(None if failure is None else files.cause(failure))
    if failure is not None:
      raise failure
    for index, text in enumerate(said):
      if text is not None:
        raise PeerError(f'process {index}: {text}')
    return result

  def agree(self, values: Mapping[str, Any], remedy: str, code: int = 2) -> None:
    """Compares named values of all processes."""
    records = self.share(dict(values))
    for name in values:
      ours = records[0].get(name)
      for index, record in enumerate(records):
        if record.get(name) != ours:
          shown = [str(value)[:_SHOWN] for value in (ours, record.get(name))]
          raise PeerError(
            f'{name} is {shown[0]} on process 0, {shown[1]} on process {index}:'
            f' {remedy}',
            code,
          )

  def beat(self) -> None:
    """Tells the watchdog that this process makes progress."""
    self._beat = time.monotonic()

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Tells the others of an error that ends the block, once."""
    try:
      yield
    except Exception as error:
      if not self.ended:
        self.ended = True
        record = {
          'stop': isinstance(error, Interrupted),
          'error': files.one_line(error, 500),
          'code': getattr(error, 'exit_code', WRONG_INPUT),
        }
        with contextlib.suppress(LostError):  # The first error says more.
          self._gather(record)
      raise
    finally:
      self.ended = self.lost  # For the next block, where all go on together.

  def close(self) -> None:
    """Waits for the others and leaves; ends the watchdog."""
    if not self.lost:
      with contextlib.suppress(LostError):
        self._meet()
    self._closed.set()

  def _gather(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gathers a record of each process."""
    data = np.frombuffer(zlib.compress(json.dumps(record).encode(), 1), np.uint8)
    self._meet()
    sizes = multihost_utils.process_allgather(np.int32(len(data))).ravel()
    room = max(_LEAST_ROOM, 1 << int(sizes.max() - 1).bit_length())
    padded = np.zeros(room, np.uint8)  # Few sizes, so few programs.
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    self.beat()
    parts = zip(rows, sizes, strict=True)
    return [json.loads(zlib.decompress(row[:size].tobytes())) for row, size in parts]

  def _meet(self) -> None:
    """Waits until every process is here; before that no device may wait."""
    self._round += 1
    self._waiting = True
    try:
      self._wait(key=f'sdar/{self._round}', timeout_ms=_FOR_EVER)
    except jax.errors.JaxRuntimeError as error:
      self.lost = self.ended = True
      raise LostError(
        f'process {self.index} lost another one ({files.one_line(error)}): start all'
        ' processes again'
      ) from error
    finally:
      self.beat()
      self._waiting = False

  def _watch(self) -> None:
    """Ends this process where it makes no progress."""
    while not self._closed.wait(min(1.0, self._seconds / 10)):
      if not self._waiting and time.monotonic() - self._beat > self._seconds:
        print(
          f'error: process {self.index} made no progress for config.hosts'
          f'.watchdog_seconds={self._seconds:g}: start all processes again',
          file=sys.stderr,
          flush=True,
        )
        os._exit(LOST)
