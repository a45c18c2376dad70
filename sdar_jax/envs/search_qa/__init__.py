"""Search-QA: questions, retrieval, answers. Host, no JAX."""
