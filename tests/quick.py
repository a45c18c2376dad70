"""`jax.jit` without optimisations: a quarter of what a program costs that runs once.

They change how numbers are rounded, so this is for tests up to a tolerance: not for
those against records, of what is not finite, or of programs that agree to the bit.
"""

import jax

_jit = jax.jit  # Tests put `jit` in its place.
_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}


def jit(function, *, compiler_options=None, **options):
  """`jax.jit`, compiled fast instead of well."""
  chosen = {**(compiler_options or {}), **_OPTIONS}
  return _jit(function, compiler_options=chosen, **options)
