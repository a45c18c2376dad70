"""Finds the experiments and models that came with this package. No JAX."""

import os
import pathlib
import sys

import sdar_jax

_PACKAGE = pathlib.Path(sdar_jax.__file__).absolute().parent
_INSTALLED = _PACKAGE / '_shipped'  # pyproject.toml puts `experiments` there.


def root() -> pathlib.Path:
  """Finds the folder of `experiments`: a checkout, or installed."""
  return _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent


def find(path: str | os.PathLike) -> pathlib.Path:
  """Finds experiments/... where it lies; other paths are left alone.

  In the working directory, else where Python looks for `experiments`, else in `root`.
  So a run's config names what came with the package by a name that holds wherever, and
  in whatever environment, the run goes on.
  """
  path = pathlib.Path(path)
  if path.parts[:1] != ('experiments',) or os.path.exists(path):
    return path
  places = (pathlib.Path(place, path) for place in (*sys.path, root()))
  return next(filter(os.path.exists, places), path)


def make_importable(folder: pathlib.Path | None = None) -> None:
  """Adds a folder and `root` to the places of `experiments`."""
  for path in filter(None, (folder, root())):
    if str(path) not in sys.path:
      sys.path.append(str(path))
