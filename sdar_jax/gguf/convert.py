"""Writes a GGUF file's model as a Hugging Face directory. No JAX.

Weights are dequantised one at a time and written in float32, which keeps every bit, or
in bfloat16 for half the space.
"""

import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from sdar_jax import files
from sdar_jax.gguf import layout, vocabulary
from sdar_jax.gguf.reader import Reader

DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
MAX_FILE_BYTES = 2_000_000_000  # Is held in memory.
_DIGESTS = 'conversion.json'
_FORMAT = 1  # To be raised where a conversion gives other files.

_found: dict[tuple[str, int, int], pathlib.Path] = {}  # By path, size and change.


def folder(path: pathlib.Path) -> pathlib.Path:
  """Finds the directory of a converted file; converts it the first time.

  It lies in the user's cache under the digest of the file, and is compared with its own
  digests by every process that asks for it.

  Raises:
    files.FileError: the file cannot be converted, or its conversion is damaged.
  """
  path = path.resolve()
  try:
    stat = path.stat()
    known = (str(path), stat.st_size, stat.st_mtime_ns)
    if known not in _found:
      _found[known] = _converted(path)
  except OSError as error:
    where = error.filename or path
    raise files.FileError(f'{where}: {error.strerror or error}') from None
  return _found[known]


def cache() -> pathlib.Path:
  """The folder of all conversions: $XDG_CACHE_HOME/sdar-jax/gguf."""
  said = os.environ['XDG_CACHE_HOME'] if 'XDG_CACHE_HOME' in os.environ else ''
  home = pathlib.Path(said) if os.path.isabs(said) else pathlib.Path.home() / '.cache'
  return home / 'sdar-jax' / 'gguf'


def _converted(path: pathlib.Path) -> pathlib.Path:
  """Finds a file's conversion, or makes it while others wait."""
  root = cache()
  root.mkdir(parents=True, exist_ok=True)
  target = root / f'{files.digest(path)[:32]}-{_FORMAT}'
  lock = files.lock(
    target.with_suffix('.lock'),
    lambda holder: print(f'{path}: waiting for {holder}', file=sys.stderr),
  )
  try:
    if target.is_dir():
      _check(target)
    else:
      print(f'{path}: converting once, into {target}', file=sys.stderr)
      write(path, target)
  finally:
    files.unlock(lock)
  return target


def _check(target: pathlib.Path) -> None:
  """Compares a conversion with its digests."""
  for name, digest in files.read_json(target / _DIGESTS).items():
    file = target / name
    if not file.is_file() or files.digest(file) != digest:
      raise files.FileError(f'{file}: damaged: delete {target}, to convert again')


def write(path: pathlib.Path, output: pathlib.Path, dtype: str = 'float32') -> None:
  """Writes a directory, whole or not at all.

  Args:
    path: of the GGUF file.
    output: the directory, absent or empty.
    dtype: of the weights, a key of `DTYPES`.

  Raises:
    files.FileError: the file cannot be read, or the directory not be written.
  """
  reader = Reader(path)
  config = layout.config_record(reader) | {'torch_dtype': dtype}
  tensors = layout.tensors(reader, config)
  texts = vocabulary.records(path, reader.metadata)
  generation = json.loads(texts['generation_config.json'])
  for key in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
    value = generation[key] if key in generation else None
    ids = value if isinstance(value, list) else [value]
    config[key] = ids[0] if ids else None
  partial = output.with_name(output.name + '.partial')
  try:
    if output.is_dir() and any(output.iterdir()):
      raise files.FileError(f'{output}: is not empty: choose another directory')
    if partial.is_dir():  # Of a conversion that was killed.
      shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _write_weights(partial, reader, tensors, DTYPES[dtype])
    texts['config.json'] = json.dumps(config, indent=2, sort_keys=True) + '\n'
    for name, text in texts.items():
      files.write_atomic(partial / name, text.encode())
    digests = {file.name: files.digest(file) for file in sorted(partial.iterdir())}
    files.write_atomic(partial / _DIGESTS, json.dumps(digests, indent=2).encode())
    os.replace(partial, output)
  except (OSError, safetensors.SafetensorError) as error:
    raise files.FileError(
      f'{output}: cannot be written ({files.one_line(error)})'
    ) from None
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write_weights(
  output: pathlib.Path,
  reader: Reader,
  tensors: Sequence[layout.GgufTensor],
  dtype: np.dtype[Any],
) -> None:
  """Writes the weights in files of bounded size, with an index of several."""
  shards: list[list[layout.GgufTensor]] = [[]]
  room = MAX_FILE_BYTES
  for tensor in tensors:
    size = math.prod(tensor.shape) * dtype.itemsize
    if size > room and shards[-1]:
      shards.append([])
      room = MAX_FILE_BYTES
    room -= size
    shards[-1].append(tensor)
  count, places, total = len(shards), {}, 0
  for number, shard in enumerate(shards, 1):
    name = f'model-{number:05d}-of-{count:05d}.safetensors'
    name = 'model.safetensors' if count == 1 else name
    arrays = {}
    for tensor in shard:
      values = np.ascontiguousarray(tensor.read(reader), dtype)
      if not np.isfinite(values).all():
        raise files.FileError(
          f'{reader.path}: tensor {tensor.name} has values that are not finite'
        )
      arrays[tensor.target] = values
      total += values.nbytes
    save_file(arrays, output / name, metadata={'format': 'pt'})
    (output / name).chmod(0o644)  # safetensors makes its files private.
    files.sync(output / name)
    places |= dict.fromkeys(arrays, name)
  if count > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': places}
    text = json.dumps(index, indent=2, sort_keys=True) + '\n'
    files.write_atomic(output / 'model.safetensors.index.json', text.encode())
