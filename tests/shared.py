"""Where tests find the data that lies beside this repository."""

import contextlib
import functools
from pathlib import Path
from unittest import mock

import pytest

from sdar_jax.prompts import tokenizer

_ROOT = Path(__file__).resolve().parents[1] / '../shared'


def shared_path(name: str) -> Path:
  """The path of shared data; skips the test where it is absent."""
  path = (_ROOT / name).resolve()
  if not path.exists():
    pytest.skip(f'needs ../shared/{name}, which is not here')
  return path


_once = functools.cache(tokenizer.load)


@contextlib.contextmanager
def loading_once():
  """Reads a tokenizer of the shared data once; nothing that reads it changes it."""
  load, root = tokenizer.load, _ROOT.resolve()

  def chosen(path, model=None):
    return (_once if root in Path(path).parents else load)(path, model)

  with mock.patch.object(tokenizer, 'load', chosen):
    yield


@functools.cache
def theirs(path):
  """A tokenizer as transformers loads it, once."""
  import transformers

  return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
