"""Files that survive a crash: atomic replacement, fsync, locks, errors. No JAX."""

import datetime
import fcntl
import hashlib
import os
import pathlib
import socket
from collections.abc import Callable

_held: set[int] = set()  # Descriptors of the locks that this process holds.


def _forget_locks() -> None:
  # A lock belongs to an open file, which a forked child shares: were the parent killed,
  # a surviving environment worker would keep it.
  for descriptor in _held:
    os.close(descriptor)
  _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def lock(path: pathlib.Path, busy: Callable[[str], None], mode: int = 0o600) -> int:
  """Locks a file for this process; the kernel frees the lock however it ends.

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
      holder = os.pread(descriptor, 300, 0).decode(errors='replace')
      busy(' '.join(holder.split()) or 'another process')
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


def unlock(descriptor: int) -> None:
  """Gives up what `lock` gave."""
  _held.discard(descriptor)
  os.close(descriptor)


def sync(path: pathlib.Path) -> None:
  """Makes a file's bytes, or the names in a directory, survive a power failure."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_atomic(path: pathlib.Path, data: bytes) -> None:
  """Puts `data` at `path`, so that a crash leaves the old file or the new one whole."""
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
  sync(path.parent)


def digest(path: pathlib.Path) -> str:
  """Hex SHA-256 of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def digest_directory(path: str | os.PathLike) -> str:
  """Hex SHA-256 over names and contents of a directory's files: not of its folders."""
  total = hashlib.sha256()
  for file in sorted(pathlib.Path(path).iterdir()):
    if file.is_file():
      total.update(f'{file.name}\0{digest(file)}\n'.encode())
  return total.hexdigest()


def one_line(error: BaseException, limit: int = 200) -> str:
  """The first `limit` characters of an error's message on one line."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= limit else text[: limit - 3] + '...'
