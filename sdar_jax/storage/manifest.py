"""The manifest of a checkpoint: its files, to the byte. No JAX."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sdar_jax import files

FORMAT = 1


def verify(directory: pathlib.Path, step: int) -> str | None:
  """Why `directory/<step>` is not a whole checkpoint; None if it is."""
  path = directory / str(step)
  manifest = path / file_name(step)
  try:
    text = manifest.read_bytes()
    expected = files.parse_json(text, manifest.name).get('files')
    if not isinstance(expected, dict):
      return f'{manifest.name} is damaged: it lists no files'
    found = listing(path, step)
    for name in sorted({*expected, *found}):
      if name not in found:
        return f'{name} is missing'
      if name not in expected:
        return f'{name} is not in the manifest'
      if found[name] != expected[name]:
        return f'{name} is damaged: its digest is not the one in the manifest'
    read_host(path)
  except FileNotFoundError:
    return f'no {manifest.name}'
  except (OSError, ValueError) as error:
    return files.one_line(error)
  # Byte for byte, so that damage to the manifest itself is seen too.
  return None if text == as_bytes(step, found) else f'{manifest.name} is damaged'


def read_host(path: pathlib.Path) -> dict[str, Any]:
  """The record in the host.json of the checkpoint at `path`.

  Raises:
    files.FileError: it is none.
  """
  record = files.read_json(path / 'host.json')
  if type(record.get('format')) is not int:
    raise files.FileError(f'{path / "host.json"}: no format')
  if record['format'] == FORMAT:  # Others may look as they like.
    for key in ('leaves', 'host'):
      if not isinstance(record.get(key), dict):
        raise files.FileError(f'{path / "host.json"}: no object {key!r}')
  return record


def steps(directory: pathlib.Path) -> list[int]:
  """Steps by directory name, ascending, whole or not."""
  names = [p.name for p in directory.iterdir() if p.name.isascii()]
  return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))


def file_name(step: int) -> str:
  """Of the manifest of a step."""
  return f'manifest-{step}.json'


def as_bytes(step: int, listed: Mapping[str, Any]) -> bytes:
  """Formats the manifest of a step."""
  record = {'format': FORMAT, 'step': step, 'files': listed}
  return (json.dumps(record, indent=1, sort_keys=True) + '\n').encode()


def listing(path: pathlib.Path, step: int) -> dict[str, dict[str, Any]]:
  """{relative path: {size, sha256}} of every file but the manifest."""
  out = {}
  for file in sorted(path.rglob('*')):
    name = file.relative_to(path).as_posix()
    if file.is_dir() or name == file_name(step):
      continue
    out[name] = {'size': file.stat().st_size, 'sha256': files.digest(file)}
  return out
