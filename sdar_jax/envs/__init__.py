"""Text worlds: interface, registry, records of their files. Host, no JAX."""
