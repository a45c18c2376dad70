"""Text worlds: interface, registry, readers of records. Host, no JAX."""
