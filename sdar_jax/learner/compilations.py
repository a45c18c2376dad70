"""Times compilations; compiles all in the first step if asked to."""

import concurrent.futures
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sdar_jax.batching import blanks
from sdar_jax.batching.packing import Packing
from sdar_jax.learner.learner import Learner
from sdar_jax.learner.optimizer import TrainState
from sdar_jax.models import sharding

_EVENT = '/jax/core/compile/backend_compile_duration'
_total = 0.0  # s of this process: JAX takes no listener back, so there is one.


def _listen(event: str, seconds: float, **about: Any) -> None:
  global _total
  if event == _EVENT:
    _total += seconds


jax.monitoring.register_event_duration_secs_listener(_listen)


def seconds() -> float:
  """Sums the s in which this process compiled or read programs."""
  return _total


class Ahead:
  """Compiles for every shape in the first step, and runs each once.

  So no later step waits for a compiler, and a shape that the device has no memory for
  ends the run at its beginning. Programs are compiled side by side. What they say of
  blank sheets is dropped: no number changes.

  Args:
    learner: of the run.
    packing: says which shapes there are.
    wanted: `config.train.compile_ahead`; False does nothing.
  """

  def __init__(self, learner: Learner, packing: Packing, wanted: bool):
    self._learner, self._left = learner, {'scores', 'gradients'} if wanted else set()
    self._packing = packing

  def scores(self, state: TrainState, initial: Any | None) -> None:
    """Compiles what scores, if it is the first call.

    Args:
      state: its shapes are those of all steps; not donated.
      initial: the initial policy, or None where `needs_initial` is False.
    """

    def call(own: list[Any], theirs: list[Any]) -> None:
      apart = theirs if self._learner.scores_apart else ()
      self._learner.score(state, initial, own, apart)

    self._once('scores', call)

  def gradients(
    self, state: TrainState, initial: Any | None, known: Mapping[str, np.ndarray]
  ) -> None:
    """Compiles what gives gradients, if it is the first call.

    Args:
      state, initial: as of `scores`.
      known: scores and credit of the step's rows, whose types are those of all steps.
    """

    def call(own: list[Any], _: list[Any]) -> None:
      for sheet in own:
        (placed,) = self._learner.to_device([sheet], known)
        jax.block_until_ready(self._learner.gradient(state, placed, initial))

    self._once('gradients', call)

  def _once(self, what: str, call: Callable[[list[Any], list[Any]], None]) -> None:
    if what not in self._left:
      return
    self._left.remove(what)
    compares = self._learner.reads_distributions
    sheets = blanks.blanks(self._packing, compares=compares)
    if jax.process_count() == 1:  # Shapes cannot be gathered from several.
      with sharding.lowering() as waiting:
        call(*sheets)
      with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda compile_one: compile_one(), waiting))
    call(*sheets)
