"""Files of a run: directory, ledger, manifests. Host, no JAX."""
