"""What all tests share: programs that were compiled once are not compiled again."""

import os
import pathlib

_CACHE = pathlib.Path(__file__).resolve().parents[1] / '.pytest_cache' / 'jax'
# Before JAX is imported; processes that tests start inherit it.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
