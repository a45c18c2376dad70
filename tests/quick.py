"""`jax.jit` without LLVM's optimisations: half of what a program costs that runs once.

They change how numbers are rounded, so this is for tests up to a tolerance: not for
those against records, of what is not finite, or of programs that agree to the bit.
"""

import jax

_jit = jax.jit  # Tests put `jit` in its place.


def jit(function, *, compiler_options=None, **options):
  """`jax.jit`, compiled fast instead of well."""
  quick = {'xla_backend_optimization_level': 0}
  chosen = {**(compiler_options or {}), **quick}
  return _jit(function, compiler_options=chosen, **options)
