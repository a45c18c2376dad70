"""Saves and restores of a run's durable state."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

from sdar_jax import files
from sdar_jax.learner.checkpoint import CheckpointError, CheckpointStore, Restored
from sdar_jax.process.team import PeerError
from sdar_jax.storage import ledger

_log = logging.getLogger(__name__)

SKIPS_IN_A_ROW = 3  # Updates that are not finite before the run stops.
_NEEDED = ('task_cursor', 'quarantine', 'retrieval')


class NonFiniteError(RuntimeError):
  """Too many updates in a row were not finite."""

  exit_code = 70


def restore(
  store: CheckpointStore, like: Any, path: pathlib.Path, say: Callable[[str], None]
) -> Restored | None:
  """Restores the checkpoint to go on from; None where a run begins.

  Args:
    store: of the run.
    like: the state of the learner, with shardings.
    path: the work directory.
    say: takes a line for people.

  Raises:
    CheckpointError: what was saved is not there any more, or cannot be used.
    NonFiniteError: it ended the run, and there is no earlier one.
    files.FileError: an evaluation report was changed.
  """
  for name in ledger.check(path):
    say(f'{path / "eval" / name} is gone: goes on without it')
  restored = store.restore(like, _is_complete)
  if restored is None:
    if step := ledger.saved_step(path):
      raise CheckpointError(
        f'{path / "checkpoints"} is empty, but step {step} was saved there: restore it'
        ' from a backup or choose another workdir'
      )
    return None
  if not _is_complete(restored):
    raise CheckpointError(
      f'{path / "checkpoints"}: no host.json has {", ".join(_NEEDED)}: restore one from'
      ' a backup or choose another workdir'
    )
  if int(restored.state.skipped_in_a_row) < SKIPS_IN_A_ROW:
    return restored
  earlier = store.restore(like, _is_sound)
  if not _is_sound(earlier):
    raise diverged(path, restored.step)
  say(
    f'checkpoint {restored.step} ended the run: it goes back to step {earlier.step},'
    ' before the updates that were not finite'
  )
  return earlier


def _is_complete(restored: Restored) -> bool:
  return all(key in restored.host for key in _NEEDED)


def _is_sound(restored: Restored) -> bool:
  return _is_complete(restored) and int(restored.state.skipped_in_a_row) == 0


def diverged(path: pathlib.Path, step: int) -> NonFiniteError:
  """Makes the error of a run with updates that are not finite."""
  return NonFiniteError(
    f'{SKIPS_IN_A_ROW} updates in a row were not finite at step {step}; the last finite'
    f' weights are in {path / "checkpoints"}: start a new workdir with a lower'
    ' config.optimizer.learning_rate, from the model of this run or from those weights'
    f' (--mode=export --checkpoint={path} --output=DIR, then --config.model.path=DIR)'
  )


def save(
  store: CheckpointStore,
  step: int,
  state: Any,
  host: Callable[[], dict[str, Any]],
  path: pathlib.Path,
) -> bool:
  """Saves a step behind its lines; returns whether the disk took it.

  Args:
    store: of the run.
    step: that is saved.
    state: the state of the learner.
    host: everything else; raises DiskError where a line is not on disk.
    path: the work directory.

  Raises:
    checkpoint.SaveError: this was the third failure in a row.
  """
  record: dict[str, Any] = {}
  try:
    record = store.team.each(host, leader=True) or {}
  except (files.DiskError, PeerError) as error:
    store.failed(step, error)
    return False
  if not store.save(step, state, record):
    return False
  if not store.team.leads:
    return True
  try:
    ledger.note_checkpoint(path, step)
  except files.DiskError as error:  # The next one will be.
    _log.warning('%s: not noted that step %d was saved', error, step)
  return True


class Saves:
  """Saves steps of a run, none of them twice.

  Args:
    store, path, host: as of `save`.
    step: the run's, which is saved already.

  Attributes:
    last: the step that was saved last.
  """

  def __init__(
    self,
    store: CheckpointStore,
    path: pathlib.Path,
    host: Callable[[], dict[str, Any]],
    step: int,
  ):
    self._store, self._path, self._host = store, path, host
    self.last = step

  def attempt(self, step: int, state: Any) -> None:
    """Saves a step, if it was not and the disk takes it; see `save`."""
    if self.last != step and save(self._store, step, state, self._host, self._path):
      self.last = step
