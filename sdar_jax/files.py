"""Crash-safe files: atomic replacement, fsync, locks, errors. No JAX."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

MAX_JSON_BYTES = 64 * 2**20

_REMOTE = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*:/')  # gs://bucket, and gs:/bucket, too.


# Of a file whose digest is another than when it was written.
CHANGED = (
  'changed since it was written: restore it from a backup, or move it away to go on'
  ' without it'
)
_LOCK_SECONDS = 1.0  # For the winner of a race to write its name.


class FileError(ValueError):
  """An unusable file or path: one line with its name and fault."""


class DiskError(OSError):
  """A disk's refusal of a file: one line naming it."""

  exit_code = 74

  def __str__(self) -> str:
    return f'{self.filename}: {self.strerror}'


_REFUSALS = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EIO,
  errno.EFBIG,
  errno.EACCES,
  errno.EPERM,
  errno.ESTALE,
  errno.ENXIO,
}


class OutputError(RuntimeError):
  """A result not written to its place; names where it lies instead."""

  exit_code = 74


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns a disk's refusal within the block into a DiskError on `path`."""
  try:
    yield
  except DiskError:
    raise
  except OSError as error:
    if error.errno not in _REFUSALS:
      raise
    raise DiskError(error.errno, error.strerror, os.fspath(path)) from error


def cause(error: BaseException) -> str:
  """Finds a disk's refusal in an error's message, else its first line."""
  if isinstance(error, DiskError):
    return one_line(error)
  for code in _REFUSALS:
    if os.strerror(code) in str(error):
      return os.strerror(code)
  return one_line(error)


_held: set[int] = set()  # Descriptors of the locks that this process holds.


def _forget_locks() -> None:
  # A lock belongs to an open file, which a forked child shares: were the parent killed,
  # a surviving environment worker would keep it.
  for descriptor in _held:
    os.close(descriptor)
  _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def lock(path: pathlib.Path, busy: Callable[[str], None], mode: int = 0o600) -> int:
  """Locks a file for this process until the process ends.

  Programs that it starts and workers that it forks do not share the lock.

  Args:
    path: made if it is not there; says who holds the lock.
    busy: takes the name of another process that holds it. What it raises is raised;
      where it returns, the lock is waited for.
    mode: of a file that is made.

  Returns:
    What `unlock` takes.
  """
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)  # Closed in other programs.
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      busy(_holder(descriptor) or 'another process')
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    name = f'pid {os.getpid()} on host {socket.gethostname()} since {now}'
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name.encode(), 0)
  except BaseException:
    os.close(descriptor)
    raise
  _held.add(descriptor)
  return descriptor


def _holder(descriptor: int) -> str:
  """Reads the holder of a lock from its file."""
  until = time.monotonic() + _LOCK_SECONDS
  while True:
    time.sleep(0.05)  # The words may still be those of an earlier holder.
    text = os.pread(descriptor, 300, 0).decode(errors='replace')
    if text.strip() or time.monotonic() > until:
      return ' '.join(text.split())


def unlock(descriptor: int) -> None:
  """Releases a lock."""
  _held.discard(descriptor)
  os.close(descriptor)


def sync(path: pathlib.Path) -> None:
  """Flushes a file's bytes, or a directory's names, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.{path.name}.tmp')


def write_atomic(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file: a crash leaves the old one or the new one whole.

  Raises:
    DiskError: the disk refuses it.
  """
  temporary = _temporary(path)
  with writing(path):
    try:
      with open(temporary, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except OSError:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
      raise
    sync(path.parent)


def write_somewhere(
  output: pathlib.Path,
  write: Callable[[pathlib.Path], None],
  what: str,
  text: str | None = None,
) -> None:
  """Writes a result; where that fails, writes it elsewhere.

  Args:
    output: where it is to go.
    write: writes it to a path.
    what: it is, for errors.
    text: printed where it can be written nowhere.

  Raises:
    OutputError: it is not at `output`; one line saying why and where it is.
  """
  try:
    write(output)
  except (OSError, ValueError) as error:
    said = f'--output={output}: {one_line(error)}'
    try:
      spare = pathlib.Path(tempfile.mkdtemp(prefix='sdar-')) / output.name
      write(spare)
    except (OSError, ValueError) as second:
      if text is None:
        raise OutputError(f'{said}; nor elsewhere: {one_line(second)}') from error
      print(text)
      raise OutputError(f'{said}; {what} is printed above') from error
    raise OutputError(f'{said}; {what} is in {spare}') from error


def digest(path: pathlib.Path) -> str:
  """Hex SHA-256 of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def one_line(error: BaseException, limit: int = 200) -> str:
  """The first `limit` characters of an error's message on one line."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= limit else text[: limit - 3] + '...'


def local_path(text: str, key: str) -> pathlib.Path:
  """Reads a path as its user means it: `~` is the home directory.

  Args:
    text: as given on the command line or in a config.
    key: the flag or config key that holds it, for errors.

  Raises:
    FileError: it is empty, a remote address such as gs://bucket, or names no home.
  """
  if not text or '\0' in text:
    raise FileError(f'{key}={text!r}: must be a path')
  if _REMOTE.match(text):
    raise FileError(
      f'{key}={text!r}: remote paths are not supported; give a directory of this'
      ' machine (a mounted bucket is one)'
    )
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as error:
    raise FileError(f'{key}={text!r}: {one_line(error)}') from None


def read_json(
  path: str | os.PathLike, kind: type = dict, *, limit: int = MAX_JSON_BYTES
) -> Any:
  """Reads the JSON value of a file.

  Args:
    path: of the file.
    kind: type that the value must have; `object` takes any.
    limit: bytes that are read at most.

  Raises:
    FileError: the file is absent, unreadable, larger than `limit` or not such JSON.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file:
      data = file.read(limit + 1)
  except OSError as error:
    raise FileError(f'{path}: {error.strerror or one_line(error)}') from None
  if len(data) > limit:
    raise FileError(f'{path}: larger than the {limit} bytes that are read at most')
  return parse_json(data, path, kind)


def parse_json(data: bytes | str, where: object, kind: type = dict) -> Any:
  """Parses JSON from outside, however deep, cut short or oddly encoded.

  A byte order mark is skipped; NaN and Infinity, which are not JSON, are refused.

  Args:
    data: UTF-8 bytes, or text.
    where: what holds it (a path, `PATH line 3`), for errors.
    kind: type that the value must have; `object` takes any.

  Raises:
    FileError: it is not such JSON.
  """
  try:
    text = data.decode('utf-8-sig') if isinstance(data, bytes) else data
    value = json.loads(text, parse_constant=_refuse_constant)
  except (ValueError, RecursionError) as error:
    reason = 'empty' if not data.strip() else one_line(error, 100)
    raise FileError(f'{where}: not JSON ({reason})') from None
  if not isinstance(value, kind):
    names = {dict: 'an object', list: 'a list', str: 'a text'}
    wanted = names.get(kind, kind.__name__)
    raise FileError(f'{where}: must be {wanted}, not a {type(value).__name__}')
  return value


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no JSON number')


def check_file(path: pathlib.Path, key: str) -> None:
  """Checks in advance for a writable file.

  Args:
    path: of the file, which may be there already.
    key: the flag that names it, for errors.

  Raises:
    FileError: it is a directory, or nothing can be written where it lies.
  """
  if os.path.isdir(path):
    raise FileError(f'{key}={path}: is a directory; name a file in it')
  _check_writable(path.parent, f'{key}={path}', _temporary(path).name)


def check_directory(path: pathlib.Path, key: str) -> None:
  """Checks in advance for a writable directory.

  Args:
    path: of the directory, which may have to be made.
    key: the flag that names it, for errors.

  Raises:
    FileError: it is a file, or nothing can be written there.
  """
  _check_writable(path, f'{key}={path}')


def _check_writable(directory: pathlib.Path, said: str, name: str = '') -> None:
  """Writes and deletes an empty file in a directory or its parent."""
  try:
    directory = directory.absolute()
    (directory / name).exists()  # Which fails where a name is too long.
    there = next(d for d in (directory, *directory.parents) if d.exists())
    if not there.is_dir():
      raise FileError(f'{said}: {there} is no directory')
    with tempfile.NamedTemporaryFile(dir=there, prefix='.sdar-'):
      pass
  except OSError as error:
    what = error.strerror or one_line(error)
    raise FileError(f'{said}: cannot be written ({what})') from None
