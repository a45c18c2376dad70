"""`jax.jit` without optimisations: a quarter of what a program costs that runs once.

They change how numbers are rounded, so this is for tests up to a tolerance: not for
those against records, of what is not finite, or of programs that agree to the bit.
The buffers of a program and its operations are nearly the same: on the programs of
test_memory and test_cost, temporaries and FLOPs by less than one in ten thousand.
"""

import functools
import importlib.util
import os
import types

import jax

_jit = jax.jit  # Tests put `jit` in its place.
# Compilers for other devices do not know these. CUDA's plugin even ends a process whose
# XLA_FLAGS have one that it does not know, on a CPU, too.
_ON_CPU = os.environ.get('JAX_PLATFORMS') == 'cpu'
_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
_OPTIONS = _OPTIONS if _ON_CPU else {}
FLAGS = '--xla_cpu_use_fusion_emitters=false'
FLAGS = '' if importlib.util.find_spec('jax_plugins') else FLAGS


def jit(function, *, compiler_options=None, **options):
  """`jax.jit`, compiled fast instead of well."""
  chosen = {**(compiler_options or {}), **_OPTIONS}
  return _jit(function, compiler_options=chosen, **options)


def lowered(program):
  """A lowered program that `compile` compiles fast."""
  compile_ = functools.partial(program.compile, compiler_options=_OPTIONS)
  return types.SimpleNamespace(compile=compile_, in_avals=program.in_avals)
