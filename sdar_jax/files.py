"""Files that survive a crash: atomic replacement, fsync, one-line errors. No JAX."""

import hashlib
import os
import pathlib


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
