"""Imports what a setting names: modules of the user's own. No JAX."""

import importlib
import traceback
from typing import Any

from sdar_jax import files


class NamedError(ValueError):
  """A name without an object behind it: one line.

  Attributes:
    missing: the module that was not found; '' for any other reason.
  """

  def __init__(self, text: str, missing: str = ''):
    super().__init__(text)
    self.missing = missing


def named(path: str) -> Any:
  """Imports 'package.module:name'.

  Raises:
    NamedError: there is no such module or name, or the module fails, whatever it
      raises; one line with the file and line of its own where that is.
  """
  module, _, name = path.partition(':')
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    missing = getattr(error, 'name', None) or ''
    raise NamedError(files.one_line(error), missing) from None
  except SyntaxError as error:
    place = f'{error.filename}, line {error.lineno or 1}'
    raise NamedError(f'{place}: SyntaxError: {error.msg}') from None
  except (Exception, SystemExit) as error:  # A module of the user's may do anything.
    frames = traceback.extract_tb(error.__traceback__)
    ours = lambda frame: frame.filename == __file__ or 'importlib' in frame.filename
    theirs = [frame for frame in frames if not ours(frame)]
    place = f'{theirs[-1].filename}, line {theirs[-1].lineno}: ' if theirs else ''
    said = f'{place}{type(error).__name__}: {files.one_line(error)}'
    raise NamedError(said) from None
