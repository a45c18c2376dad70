"""Retrieval of passages: BM25, dense, a server. Host, no JAX."""
