"""Environments of other packages as worlds. Host, no JAX."""
