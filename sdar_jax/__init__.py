"""Self-distilled agentic reinforcement learning in JAX."""
