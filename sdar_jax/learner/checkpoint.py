"""Checkpoints, whole or absent: arrays by Orbax, our own checksums.

A checkpoint is one directory, `<step>/`:

  state/                 the arrays, by Orbax
  host.json              everything else, with the name, shape and dtype of each array
  manifest-<step>.json   size and SHA-256 of every other file

It is built as `.tmp-<step>-.../` and renamed when every byte is on disk: the rename is
the commit. A directory without a manifest that matches is not a checkpoint: Orbax alone
takes a directory for one by its name, and does not notice a flipped bit.

Of several processes each writes its own devices' shards and the first one the rest; a
save that fails for one fails for all. Whoever opens a store holds the directory's lock.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from sdar_jax import files
from sdar_jax.process.team import ALONE, Alone
from sdar_jax.storage import manifest

_log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3


class CheckpointError(ValueError):
  """An unusable checkpoint: one line with name, reason and remedy."""


class SaveError(RuntimeError):
  """Saving failed too often in a row; the run must stop."""

  exit_code = 74


class Restored(NamedTuple):
  """What a checkpoint held."""

  step: int
  state: Any
  host: dict[str, Any]


class CheckpointStore:
  """The checkpoints of one run, newest last; opening removes unfinished.

  Args:
    directory: the store's own directory; made if absent.
    keep: verified checkpoints that are kept, at least 2.
    team: the processes of the run, which all open the store.

  Attributes:
    failed_saves: since it was opened.

  Raises:
    CheckpointError: `keep` is below 2.
    files.DiskError: the disk refuses the directory.
  """

  def __init__(self, directory: str | os.PathLike, keep: int, team: Alone = ALONE):
    if keep < 2:
      raise CheckpointError(f'config.checkpoint.keep={keep}: must be at least 2')
    self._directory = pathlib.Path(directory).absolute()
    self._keep, self.team = keep, team
    self._verified: list[int] = []  # Ascending; read back and found whole.
    self._failures = 0
    self.failed_saves = 0
    _quieten()
    self._looked = team.first(self._open)

  def _open(self) -> bool:
    """Makes or tidies the directory; tells whether it is empty."""
    with files.writing(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
      self._tidy()
      return not any(self._directory.iterdir())

  def restore(
    self, like: Any, wanted: Callable[[Restored], bool] = lambda restored: True
  ) -> Restored | None:
    """Restores the newest whole checkpoint, on the shardings of `like`.

    Args:
      like: a pytree of jax.Array or jax.ShapeDtypeStruct with shardings, of any mesh.
      wanted: whether a whole checkpoint will do; saves replace those above the one
        that does.

    Returns:
      The checkpoint, the newest whole one where none is wanted, or None where the store
      is empty.

    Raises:
      CheckpointError: nothing in the store is whole, or it does not fit `like`.
    """
    restored = load(self._directory, like, wanted=wanted, team=self.team)
    self._looked = True
    if restored is not None:
      self._verified = [restored.step]
    return restored

  def save(self, step: int, state: Any, host: Mapping[str, Any]) -> bool:
    """Commits a checkpoint; a failed attempt leaves no trace.

    Args:
      step: its number, not below the newest checkpoint's.
      state: a pytree of jax.Array.
      host: what JSON holds without loss; of the first process.

    Returns:
      Whether it was saved. If not, the reason has been logged and the run may go on.

    Raises:
      SaveError: this was the third failure in a row.
      CheckpointError: the store holds checkpoints that nobody looked at.
      ValueError: a leaf or a host value cannot be saved, or the step is an old one.
    """
    if not self._looked:
      raise CheckpointError(
        f'{self._directory} is not empty: restore from it before saving to it'
      )
    if self._verified and step < self._verified[-1]:
      raise ValueError(f'step {step} is below the newest one, {self._verified[-1]}')
    leaves = _saveable(state)
    record = _host_record(step, leaves, host)
    try:
      self._write(step, leaves, record)
    except Exception as error:  # Orbax and TensorStore raise many types, even this one.
      self.failed(step, error)
      return False
    self._failures = 0
    self._verified = [s for s in self._verified if s != step] + [step]
    self._retire()
    return True

  def failed(self, step: int, error: Exception) -> None:
    """Counts a save that failed, and says so.

    Raises:
      SaveError: this was the third failure in a row.
    """
    if self.team.ended:
      raise error
    with contextlib.suppress(OSError):
      self._tidy()
    self._failures += 1
    self.failed_saves += 1
    line = f'checkpoint {self._directory / str(step)} not saved'
    line += f' (failure {self._failures} in a row): {files.cause(error)}'
    if self._failures >= MAX_FAILED_SAVES:
      raise SaveError(line) from error
    _log.warning('%s', line)

  def _write(self, step: int, leaves: Mapping[str, jax.Array], record: bytes) -> None:
    """Builds a directory with every byte on disk, and publishes it."""
    # Not the name of the last attempt, which a thread of Orbax's may still write to.
    staging = self._directory / f'.tmp-{step}-{self._failures}'
    self.team.each(staging.mkdir, leader=True)
    self.team.each(lambda: _write_arrays(staging / 'state', leaves))
    self.team.each(lambda: self._seal(staging, step, record), leader=True)

  def _seal(self, staging: pathlib.Path, step: int, record: bytes) -> None:
    """Adds what is no array and the manifest; commits."""
    (staging / 'host.json').write_bytes(record)
    for path in staging.rglob('*'):
      files.sync(path)
    content = manifest.as_bytes(step, manifest.listing(staging, step))
    files.write_atomic(staging / manifest.file_name(step), content)
    self._publish(staging, step)

  def _publish(self, staging: pathlib.Path, step: int) -> None:
    final = self._directory / str(step)
    if final.exists():
      # Moved aside, not deleted: `_tidy` puts it back if we die before the next line.
      os.rename(final, self._directory / f'.replaced-{step}')
    os.rename(staging, final)
    files.sync(self._directory)
    self._tidy()

  def _retire(self) -> None:
    """Removes what is older than the newest `keep` that were verified."""
    self._verified = self._verified[-self._keep :]
    if len(self._verified) < self._keep or not self.team.leads:
      return
    try:
      for step in manifest.steps(self._directory):
        if step < self._verified[0]:
          # Renamed first: a half-deleted directory must not look like a checkpoint.
          trash = self._directory / f'.trash-{step}'
          os.rename(self._directory / str(step), trash)
          shutil.rmtree(trash)
    except OSError as error:
      _log.warning('old checkpoint not removed: %s', files.one_line(error))

  def _tidy(self) -> None:
    """Removes what an interrupted save or removal left behind."""
    for path in sorted(self._directory.iterdir()) if self.team.leads else ():
      kind, _, step = path.name.partition('-')
      if kind == '.replaced' and not (self._directory / step).exists():
        os.rename(path, self._directory / step)
      elif kind in ('.tmp', '.trash', '.replaced'):
        shutil.rmtree(path, ignore_errors=True)


def _write_arrays(path: pathlib.Path, leaves: Mapping[str, jax.Array]) -> None:
  """Writes the shards of this process, and flushes them."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(path, args=ocp.args.PyTreeSave(dict(leaves)))
  if jax.process_count() > 1:  # What another host wrote only that one can flush.
    for file in path.rglob('*'):
      files.sync(file)


def _quieten() -> None:
  """Silences the pages of libraries on a failed save."""
  if os.environ.get('SDAR_TRACEBACK') == '1':
    return
  for name in ('', 'absl', 'asyncio'):
    logging.getLogger(name or None).addFilter(_is_ours)  # Adding it twice is once.
  if sys.unraisablehook is not _unraisable:
    _hooks.append(sys.unraisablehook)
    sys.unraisablehook = _unraisable


def _is_ours(record: logging.LogRecord) -> bool:
  return record.name != 'asyncio' and 'orbax' not in record.pathname


_hooks: list[Callable[[Any], None]] = []


def _unraisable(event: Any) -> None:
  # What still writes for a save that was given up finds its event loop gone.
  if str(event.exc_value) != 'Event loop is closed':
    _hooks[-1](event)


def load(
  directory: str | os.PathLike,
  like: Any,
  *,
  subset: bool = False,
  wanted: Callable[[Restored], bool] = lambda restored: True,
  team: Alone = ALONE,
) -> Restored | None:
  """The newest whole checkpoint in `directory`, changing nothing there.

  Args:
    directory: a store's directory; another run may be writing to it.
    like: a pytree of jax.Array or jax.ShapeDtypeStruct with shardings, of any mesh.
    subset: `like` may lack leaves that the checkpoint has (the optimizer's, say).
    wanted: as in `CheckpointStore.restore`.
    team: the processes that load together; the first one verifies.

  Returns:
    The checkpoint, or None where `directory` is absent or empty.

  Raises:
    CheckpointError: nothing in there is whole, or it does not fit `like`.
  """
  directory = pathlib.Path(directory).absolute()
  names = team.first(
    lambda: [p.name for p in directory.iterdir()] if directory.is_dir() else []
  )
  if all(name.startswith(('.tmp-', '.trash-')) for name in names):
    return None
  reasons, newest = [], None
  for step in reversed(team.first(lambda: manifest.steps(directory))):
    reason = team.first(lambda: manifest.verify(directory, step))  # noqa: B023
    if reason is None:
      restored = _load(directory / str(step), step, like, subset)
      if wanted(restored):
        return restored
      newest = newest or restored
      continue
    _log.warning('checkpoint %s skipped: %s', directory / str(step), reason)
    reasons.append(f'{step}: {reason}')
  if newest is not None:
    return newest
  found = '; '.join(reasons[:3]) if reasons else f'found {sorted(names)[:3]}'
  raise CheckpointError(
    f'{directory} is not empty but holds no whole checkpoint ({found}):'
    ' restore one from a backup or choose another workdir'
  )


def _load(path: pathlib.Path, step: int, like: Any, subset: bool) -> Restored:
  record, ours = manifest.read_host(path), manifest.FORMAT
  if record.get('format') != ours:
    raise CheckpointError(
      f'{path}: format {record.get("format")}, this version reads {ours}'
    )
  wanted, treedef = _abstract(like)
  _compare(path, record['leaves'], wanted, subset)
  args = ocp.args.PyTreeRestore(
    wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    partial_restore=subset,
  )
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      leaves = checkpointer.restore(path / 'state', args=args)
  except Exception as error:  # TensorStore dumps pages; one line is enough.
    raise CheckpointError(
      f'{path}: verified but unreadable: {files.one_line(error)}'
    ) from error
  state = jax.tree.unflatten(treedef, [leaves[name] for name in wanted])
  return Restored(step, state, record['host'])


def _compare(
  path: pathlib.Path,
  saved: Mapping[str, Any],
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  subset: bool,
) -> None:
  """Names the first leaf of another shape or dtype; Orbax would cast it."""
  for name in wanted:
    if name not in saved:
      raise CheckpointError(f'{path}: it has no leaf {name}, which this config needs')
    ours = _describe(wanted[name])
    if saved[name] != ours:
      raise CheckpointError(
        f'{path}: leaf {name} is {saved[name]}, but this config needs {ours}'
      )
  for name in saved:
    if name not in wanted and not subset:
      raise CheckpointError(f'{path}: its leaf {name} has no place under this config')


def _describe(leaf: Any) -> str:
  return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def _named(tree: Any) -> tuple[dict[str, Any], Any]:
  """{'params.layers.kernel': leaf} and the tree's structure."""
  pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
  leaves = {name(path): leaf for path, leaf in pairs}
  if len(leaves) != len(pairs):
    raise ValueError('two leaves of the state have one name: rename a key')
  return leaves, treedef


def _saveable(state: Any) -> dict[str, jax.Array]:
  leaves, _ = _named(state)
  for name, leaf in leaves.items():
    if not isinstance(leaf, jax.Array):
      raise ValueError(
        f'state leaf {name} is a {type(leaf).__name__}: make it a jax.Array or put it'
        ' into host'
      )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(f'state leaf {name} is a key: save jax.random.key_data of it')
    if leaf.size == 0:
      raise ValueError(f'state leaf {name} is empty: it cannot be saved')
    if leaf.is_deleted():
      raise ValueError(f'state leaf {name} was donated: save before the next update')
  return leaves


def _abstract(like: Any) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
  leaves, treedef = _named(like)
  wanted = {}
  for name, leaf in leaves.items():
    if leaf.sharding is None:
      raise ValueError(f'leaf {name} of `like` has no sharding')
    wanted[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  return wanted, treedef


def _host_record(
  step: int, leaves: Mapping[str, jax.Array], host: Mapping[str, Any]
) -> bytes:
  for key, value in host.items():
    try:
      survives = json.loads(json.dumps(value)) == value
    except TypeError:
      survives = False
    if not survives:  # A tuple, an int key, a NaN or an array, say.
      raise ValueError(f'host[{key!r}] does not survive JSON: use lists and str keys')
  record = {
    'format': manifest.FORMAT,
    'step': step,
    'leaves': {name: _describe(leaf) for name, leaf in leaves.items()},
    'host': dict(host),
  }
  return json.dumps(record, indent=1).encode()
