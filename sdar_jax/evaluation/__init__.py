"""Evaluation: panels, reports, statistics, comparisons. Host, no JAX."""
