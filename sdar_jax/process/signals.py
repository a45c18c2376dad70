"""Answers requests to stop at once, in any phase. No JAX."""

import os
import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ACKNOWLEDGED = 'stopping after this step; again to stop now'
_CLEAR = '\r\x1b[K'  # Of a terminal's line, on which there are ^C and a live display.
_GRACE_SECONDS = 2.0  # For an orderly end after the second signal.


class StopSignal:
  """Turns SIGTERM, SIGINT or SIGHUP into a flag; a second ends all.

  Python runs a handler only between two of its own instructions, so a compilation of
  minutes would keep it. The interpreter's wake-up pipe is written at once, and a thread
  that reads it answers the person who pressed the keys. Signals that are ignored at
  the start (as `nohup` makes SIGHUP) stay ignored.

  Use it in the main thread, as a context manager.

  Args:
    descriptor: of the terminal or file that is told; standard output by default.
  """

  def __init__(self, descriptor: int = 1):
    self.raised = False
    self._descriptor = descriptor
    self._ended = threading.Event()
    self._unsaid = threading.Lock()  # Taken by whoever answers, and never given back.

  def __call__(self) -> bool:
    return self.raised

  def __enter__(self) -> 'StopSignal':
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._numbers = [
      n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN
    ]
    self._earlier = {n: signal.signal(n, self._handle) for n in self._numbers}
    self._pipe = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._answer, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._ended.set()
    signal.set_wakeup_fd(self._pipe)
    for number, handler in self._earlier.items():
      signal.signal(number, handler)
    os.close(self._writer)  # Which ends the thread, when it has said its words.
    self._thread.join()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.raised:
      raise SystemExit(128 + number)
    self.raised = True
    self._acknowledge()

  def _answer(self) -> None:
    """Answers a signal; ends a process that hangs at the second."""
    seen = 0
    while data := os.read(self._reader, 1):
      if data[0] not in self._numbers:
        continue
      seen += 1
      if seen == 1:
        self._acknowledge()
      elif seen == 2:
        if not self._ended.wait(_GRACE_SECONDS):
          os._exit(128 + data[0])
    os.close(self._reader)

  def _acknowledge(self) -> None:
    if not self._unsaid.acquire(blocking=False):
      return
    try:  # Not through Python's streams, which the main thread may be writing to.
      clear = _CLEAR if os.isatty(self._descriptor) else ''
      os.write(self._descriptor, f'{clear}{ACKNOWLEDGED}\n'.encode())
    except OSError:
      pass  # The terminal is gone: there is nobody to tell.
