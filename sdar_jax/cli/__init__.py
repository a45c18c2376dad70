"""Command line of `main`, and what it says of a config. Host, no JAX."""
