"""Flags, terminal, signals and devices of a program. Host, no JAX."""
