"""Methods: table, interface, teachers, numbers, credit. Host, no JAX."""
