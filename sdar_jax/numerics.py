"""Settings of JAX with an effect on numbers: pinned or recorded."""

import os

import jax

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


def pin() -> None:
  """Pins the settings behind samples against the environment."""
  for name, value in _PINNED.items():
    jax.config.update(name, value)


def describe() -> str:
  """Formats the settings as one line; equal lines, equal settings."""
  names = (*_PINNED, *_RECORDED)
  settings = [f'{name}={getattr(jax.config, name)}' for name in names]
  flags = sorted(os.environ['XLA_FLAGS'].split()) if 'XLA_FLAGS' in os.environ else []
  settings += [flag for flag in flags if not flag.startswith(_HARMLESS)]
  return ' '.join(settings)
