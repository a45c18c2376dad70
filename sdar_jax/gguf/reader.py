"""A GGUF file: its metadata, and its tensors one at a time. No JAX."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from sdar_jax import files

_MAGIC = b'GGUF'


class Reader:
  """An open file.

  Attributes:
    path: of the file.
    metadata: key -> value, text, number or list of these.
    shapes: name of each tensor -> its shape, rows first.
  """

  def __init__(self, path: pathlib.Path):
    """Reads metadata and the tensors' descriptions, no tensor.

    Raises:
      files.FileError: the package is missing, or this is no whole GGUF file.
    """
    self.path = path
    try:
      import gguf
    except ImportError:
      raise files.FileError(
        f"{path}: reading GGUF files needs the package gguf: pip install 'gguf>=0.10'"
      ) from None
    self._dequantize = gguf.quants.dequantize
    with self._refusing('truncated or not GGUF: download it again'):
      with path.open('rb') as file:
        if file.read(len(_MAGIC)) != _MAGIC:
          raise ValueError('it does not begin with GGUF')
      opened = gguf.GGUFReader(path)
      array, text = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
      self.metadata = {
        name: _value(field, array, text) for name, field in opened.fields.items()
      }
      self._tensors = {tensor.name: tensor for tensor in opened.tensors}
      self.shapes = {
        name: tuple(int(size) for size in reversed(tensor.shape))
        for name, tensor in self._tensors.items()
      }

  def read(self, name: str) -> np.ndarray:
    """Dequantises one tensor, float32 in its shape.

    Raises:
      files.FileError: its kind is unknown to the package.
    """
    tensor = self._tensors[name]
    with self._refusing(f'tensor {name} of kind {tensor.tensor_type.name} is not read'):
      values = self._dequantize(tensor.data, tensor.tensor_type)
      return np.asarray(values, np.float32).reshape(self.shapes[name])

  @contextlib.contextmanager
  def _refusing(self, what: str) -> Iterator[None]:
    try:
      yield
    except (
      ValueError,  # Of numpy, where the file ends too soon.
      LookupError,
      OSError,
      OverflowError,
      MemoryError,
      NotImplementedError,
    ) as error:
      raise files.FileError(
        f'{self.path}: {what} ({files.one_line(error, 100)})'
      ) from None


def _value(field: Any, array: Any, text: Any) -> Any:
  """Converts a field; `contents` of newer packages is not in all."""
  kinds = field.types
  if not kinds:
    return None
  if kinds[-1] == text:
    values = [str(bytes(field.parts[i]), 'utf-8') for i in field.data]
  else:
    values = [value for i in field.data for value in field.parts[i].tolist()]
  return values if kinds[0] == array else values[0]
