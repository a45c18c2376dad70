"""Traces chosen steps for Perfetto and xprof, with the names of phases."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax

from sdar_jax import files

_log = logging.getLogger(__name__)


class Profiler:
  """Traces some steps of a run; what fails costs the trace, not the run.

  A trace is in DIRECTORY/plugins/profile/TIME/: `*.trace.json.gz` opens in
  ui.perfetto.dev, and `xprof --logdir=DIRECTORY` reads all of it.

  Args:
    directory: where traces are written.
    steps: to trace.
  """

  def __init__(self, directory: pathlib.Path, steps: Collection[int]):
    self._directory, self._steps = directory, frozenset(steps)
    self._open: contextlib.ExitStack | None = None

  def begin(self, step: int) -> None:
    """Begins the trace of a step, if it is one of those."""
    if step not in self._steps or self._open is not None:
      return
    stack, options = contextlib.ExitStack(), jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Every call of Python would hide the rest.
    path = str(self._directory)
    start = lambda: jax.profiler.start_trace(path, profiler_options=options)
    if self._tried(start):
      stack.callback(lambda: self._tried(jax.profiler.stop_trace))
      stack.enter_context(jax.profiler.StepTraceAnnotation('step', step_num=step))
      self._open = stack

  def phase(self, name: str) -> Any:
    """Names what happens inside of the context that this returns."""
    return jax.profiler.TraceAnnotation(name)

  def end(self) -> None:
    """Writes the trace of a step, if one was begun."""
    if self._open is not None:
      self._open.close()
      self._open = None

  def _tried(self, act: Callable[[], None]) -> bool:
    try:
      act()
    except Exception as error:  # The profiler's, of any kind.
      _log.warning('%s: no trace: %s', self._directory, files.one_line(error))
      return False
    return True
