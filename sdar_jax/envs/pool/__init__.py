"""Environments in processes, safe against their death. Host, no JAX."""
