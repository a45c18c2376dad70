"""Prompts: chat template, skills, what a teacher sees. Host, no JAX."""
