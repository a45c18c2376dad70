"""Times compilations; compiles all in the first step if asked to."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sdar_jax.batching import packing as packing_lib
from sdar_jax.learner.learner import Learner
from sdar_jax.learner.state import TrainState

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
  ends the run at its beginning. What these runs say is dropped: no number changes.

  Args:
    learner: of the run.
    packing: says which shapes there are.
    wanted: `config.train.compile_ahead`; False does nothing.
  """

  def __init__(self, learner: Learner, packing: packing_lib.Packing, wanted: bool):
    self._learner, self._packing, self._wanted = learner, packing, wanted

  def __call__(
    self, state: TrainState, initial: Any | None, known: Mapping[str, np.ndarray]
  ) -> None:
    """Compiles, if it is the first call.

    Args:
      state: its shapes are those of all steps; not donated.
      initial: the initial policy, or None where `needs_initial` is False.
      known: scores and credit of the step's rows, whose types are those of all steps.
    """
    if not self._wanted:
      return
    self._wanted, learner = False, self._learner
    compares = learner.reads_distributions
    own, theirs = packing_lib.blanks(self._packing, compares=compares)
    learner.score(state, initial, own, theirs if learner.scores_apart else ())
    for sheet in own:
      (placed,) = learner.to_device([sheet], known)
      jax.block_until_ready(learner.gradient(state, placed, initial))
