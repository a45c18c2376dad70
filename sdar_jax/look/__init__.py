"""Looks at runs: episodes, their tokens, reports. Host: no JAX."""
