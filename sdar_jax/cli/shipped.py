"""Finds the experiments that came with this package. No JAX."""

import os
import pathlib
import sys

import sdar_jax

_PACKAGE = pathlib.Path(sdar_jax.__file__).absolute().parent
_INSTALLED = _PACKAGE / '_shipped'  # pyproject.toml puts `experiments` there.


def root() -> pathlib.Path:
  """Finds the folder of `experiments`: a checkout, or installed."""
  return _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent


def find(path: pathlib.Path) -> pathlib.Path:
  """Finds experiments/... in the working directory, else in `root`."""
  if path.parts[:1] != ('experiments',) or os.path.exists(path):
    return path
  shipped = root() / path
  return shipped if shipped.is_file() else path


def make_importable(folder: pathlib.Path | None = None) -> None:
  """Adds a folder and `root` to the places of `experiments`."""
  for path in filter(None, (folder, root())):
    if str(path) not in sys.path:
      sys.path.append(str(path))
