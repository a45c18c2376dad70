"""What processes with eight devices on one CPU tell XLA, before JAX is imported."""

# They compare meshes up to rounding, which a slow program has as well as a fast one:
# half of their time was LLVM's, over programs that run once.
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
