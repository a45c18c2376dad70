"""Environments in processes that may die. Host, no JAX."""
