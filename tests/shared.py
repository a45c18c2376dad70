"""Where tests find the data that lies beside this repository."""

from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1] / '../shared'


def shared_path(name: str) -> Path:
  """The path of shared data; skips the test where it is absent."""
  path = (_ROOT / name).resolve()
  if not path.exists():
    pytest.skip(f'needs ../shared/{name}, which is not here')
  return path
