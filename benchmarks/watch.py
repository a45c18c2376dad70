"""Time, by the clock and of the processor, for the scripts beside this file."""

import time


class Watch:
  """Time since it was made, as text: by the clock and of this process."""

  def __init__(self):
    self._start = time.perf_counter(), time.process_time()

  def __str__(self) -> str:
    clock, processor = self.read()
    return f'{clock:.1f} s ({processor:.1f} s of the processor)'

  def read(self) -> tuple[float, float]:
    """Seconds."""
    return time.perf_counter() - self._start[0], time.process_time() - self._start[1]
