"""Settings of JAX with an effect on numbers: pinned or recorded."""

import functools
import logging
import os
import pathlib

import jax

from sdar_jax.process import memory

_log = logging.getLogger(__name__)

# Our own choice, whatever the environment says: the default of today's JAX. They decide
# which tokens are sampled.
_PINNED = {
  'jax_threefry_partitionable': True,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_enable_x64': False,
}
# The user's choice, which a resumed run must share.
_RECORDED = ('jax_default_matmul_precision', 'jax_numpy_dtype_promotion')
# Flags of XLA that say how to run, watch or compile, never what comes out.
_HARMLESS = (
  '--xla_force_host_platform_device_count',
  '--xla_dump',
  '--xla_hlo_profile',
  '--xla_gpu_cuda_data_dir',
)
# Matrix products of XLA for CPU by Eigen and not by YNNPACK: for the shapes of small
# models a forward pass then takes 2/3 of the time, a gradient 5/6 (jaxlib 0.10). But in
# Eigen's a row may depend, in its last bit, on its place among the others.
_CPU_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': ''}
_SECONDS_WORTH_KEEPING = 0.3  # To compile a program.


def pin() -> None:
  """Pins the settings behind samples against the environment."""
  for name, value in _PINNED.items():
    jax.config.update(name, value)


def prepare() -> None:
  """Pins numbers, keeps programs and memory, before the first program."""
  memory.keep()
  pin()
  keep_programs()


def keep_programs() -> None:
  """Keeps compiled programs on disk, for later processes.

  Where JAX_COMPILATION_CACHE_DIR says, or else in the user's folder for such things,
  which nobody else may write to: what lies there is run as it is.
  JAX_ENABLE_COMPILATION_CACHE=false keeps none. A folder that cannot be written to is
  JAX's to warn of.
  """
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    path = pathlib.Path(root, 'sdar-jax', 'programs')
    if not _is_private(path):
      _log.warning('%s: no programs are kept there, it is of another user', path)
      return
    jax.config.update('jax_compilation_cache_dir', str(path))
  name = 'jax_persistent_cache_min_compile_time_secs'
  if name.upper() not in os.environ:
    jax.config.update(name, _SECONDS_WORTH_KEEPING)


def _is_private(path: pathlib.Path) -> bool:
  """Makes a folder that only this user may open; tells whether it is one."""
  try:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
      return False
    path.chmod(0o700)
  except OSError:
    pass  # There is none, or nobody may write to it.
  return True


@functools.cache
def fast_products(platform: str) -> dict[str, str]:
  """Chooses options of XLA for programs of rows that may depend.

  Those that sample must not have them: what a request says would depend, in its last
  bit, on the slot that it got.

  Args:
    platform: of the devices.

  Returns:
    `compiler_options` of `jax.jit`; none where this XLA does not know them.
  """
  if platform != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU_OPTIONS


def describe() -> str:
  """Formats the settings as one line; equal lines, equal settings."""
  names = (*_PINNED, *_RECORDED)
  settings = [f'{name}={getattr(jax.config, name)}' for name in names]
  flags = sorted(os.environ['XLA_FLAGS'].split()) if 'XLA_FLAGS' in os.environ else []
  settings += [flag for flag in flags if not flag.startswith(_HARMLESS)]
  return ' '.join(settings)
