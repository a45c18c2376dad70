"""Prompts: chat template, skills, privileged contexts. Host, no JAX."""
