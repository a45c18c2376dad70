"""`jax.jit` without LLVM's optimisations: half of what a program costs that runs once.

They change how numbers are rounded, so this is for tests up to a tolerance: not for
those against records, of what is not finite, or of programs that agree to the bit.
"""

import functools

import jax

jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
