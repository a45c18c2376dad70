"""Flags, terminal and signals of a program. Host, no JAX."""
