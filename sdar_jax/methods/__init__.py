"""Methods: the table, their interface, teachers, numbers, credit. Host, no JAX."""
