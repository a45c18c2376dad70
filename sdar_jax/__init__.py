"""Self-distilled agentic reinforcement learning in JAX.

`config_of`, `load` and `train` are for scripts and notebooks (docs/python.md). JAX is
imported when one of them is used, not before.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_OF_API = ('ChatPolicy', 'config_of', 'load')


def __getattr__(name: str) -> Any:
  """Imports what scripts use when they use it."""
  if name in _OF_API:
    return getattr(importlib.import_module('sdar_jax.api'), name)
  if name == 'train':  # A module; `api` makes it one that can be called.
    importlib.import_module('sdar_jax.api')
    return importlib.import_module('sdar_jax.train')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
