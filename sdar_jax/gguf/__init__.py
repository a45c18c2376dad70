"""GGUF files, converted into Hugging Face directories. Host: no JAX."""
