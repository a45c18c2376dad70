"""What a run shows and writes of its numbers. Host, no JAX."""
