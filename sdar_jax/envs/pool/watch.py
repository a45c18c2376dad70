"""Names slow calls in the log. No JAX."""

import logging
import threading
import time

_log = logging.getLogger(__name__)


class Watch:
  """Logs one line about a slow call: `with watch('task 3'): ...`.

  Args:
    seconds: that are too long.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._what, self._since = '', 0.0
    self._running: int | None = None  # The number of what is going on.
    self._count = 0
    self._closed = threading.Event()
    self._thread: threading.Thread | None = None

  def __call__(self, what: str) -> 'Watch':
    self._what = what
    return self

  def __enter__(self) -> None:
    if self._thread is None:
      self._thread = threading.Thread(target=self._look, daemon=True)
      self._thread.start()
    self._since = time.monotonic()
    self._count += 1
    self._running = self._count

  def __exit__(self, *exc_info: object) -> None:
    self._running = None

  def close(self) -> None:
    """Ends the watching."""
    self._closed.set()
    if self._thread is not None:
      self._thread.join()

  def _look(self) -> None:
    named = None
    while not self._closed.wait(min(self._seconds / 4, 1.0)):
      running, what, spent = self._running, self._what, time.monotonic() - self._since
      if running is None or running == named or spent <= self._seconds:
        continue
      if running == self._running:  # Else the three were not of one call.
        named = running
        _log.warning(
          '%s: no answer for %.0f s; config.pool.workers above 0 ends and replaces'
          ' environments that hang (config.pool.deadline_seconds)',
          what,
          spent,
        )
