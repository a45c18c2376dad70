"""Files that survive a crash: atomic replacement, fsync, one-line errors. No JAX."""

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


def one_line(error: BaseException, limit: int = 200) -> str:
  """The first `limit` characters of an error's message on one line."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= limit else text[: limit - 3] + '...'
