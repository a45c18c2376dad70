"""Runs `sdar-study`, whose code lies with the experiments. Host, no JAX."""

from collections.abc import Sequence

from sdar_jax.process import shipped


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the experiments' study.py; returns the exit code."""
  shipped.make_importable()
  from experiments import study

  return study.main(argv)
