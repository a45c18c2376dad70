"""Patience with absent environments, as a restarting server. No JAX."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sdar_jax.envs.pool.pool import Pool
from sdar_jax.rollout import episodes
from sdar_jax.trajectory import Group

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # Seconds; a pause is twice the one before.
_SLICE = 0.2  # Seconds between two looks at whether the run shall stop.
_T = TypeVar('_T')


class EmptyStepError(RuntimeError):
  """No episode counts, for reasons of infrastructure."""

  exit_code = 70


class Patience:
  """Repeats fruitless rollouts, with growing pauses, within a budget.

  Args:
    seconds: from the first failure until it gives up; 0 does not wait.
    say: takes a line for people.
    should_stop: asked during pauses.
    now, sleep: the clock.
  """

  def __init__(
    self,
    seconds: float,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
  ):
    self._seconds, self._say, self._should_stop = seconds, say, should_stop
    self._now, self._sleep = now, sleep

  def until_played(
    self, what: str, play: Callable[[], _T], missing: Callable[[_T], str | None]
  ) -> _T:
    """Calls `play` until its result is complete.

    Args:
      what: is played, for people.
      play: plays the same again at every call.
      missing: why its result is of no use, in one line; None if it is.

    Raises:
      EmptyStepError: the budget is spent; one line naming what is missing.
      rollout.Interrupted: the run was asked to stop meanwhile.
    """
    pause, until = _FIRST_PAUSE, None
    while (reason := missing(result := play())) is not None:
      until = self._now() + self._seconds if until is None else until
      left = until - self._now()
      if left <= 0:
        raise EmptyStepError(
          f'{what}: {reason}; gave up after config.pool.patience_seconds='
          f'{self._seconds:g}: the same command goes on'
        )
      pause = min(pause, left)
      self._say(
        f'{what}: {reason}; waiting: plays it again in {pause:.0f} s, for at most'
        f' {left:.0f} s more'
      )
      self._rest(pause)
      pause = min(2 * pause, _LONGEST_PAUSE)
    return result

  def _rest(self, seconds: float) -> None:
    until = self._now() + seconds
    while (left := until - self._now()) > 0:
      if self._should_stop():
        raise episodes.Interrupted
      self._sleep(min(left, _SLICE))


def fault_of_all(groups: Sequence[Group], pool: Pool) -> str | None:
  """Names the fault of groups without exception; None if one is whole.

  Raises:
    EmptyStepError: all tasks are in quarantine, which waiting does not change.
  """
  if not all(any(t.outcome.is_fault for t in g.trajectories) for g in groups):
    return None
  reason = f'every group had an environment fault{_last(pool)}'
  if groups and {g.task.task_id for g in groups} <= set(pool.quarantine):
    raise EmptyStepError(f'{reason}: see config.pool.deadline_seconds')
  return reason


def _last(pool: Pool) -> str:
  fault = pool.last_fault
  return '' if fault is None else f', the last: {fault.kind}, {fault.message}'


def not_empty(rows: list[Any], step: int, max_prompt_tokens: int) -> list[Any]:
  """Gives the rows of a step back; raises EmptyStepError without any."""
  if not rows:
    raise EmptyStepError(
      f'step {step}: no episode has a turn to train on: every first prompt is'
      f' above config.rollout.max_prompt_tokens={max_prompt_tokens}'
    )
  return rows
