"""Runs `sdar-study`, whose code lies with the experiments. Host, no JAX."""

from sdar_jax.process import shipped


def main() -> None:
  """Runs experiments/study.py of this package."""
  shipped.make_importable()
  from experiments import study

  study.main()
