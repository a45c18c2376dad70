"""Playing episodes with a sampler. Host, no JAX."""
