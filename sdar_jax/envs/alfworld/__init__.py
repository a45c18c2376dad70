"""ALFWorld: PDDL engine, generated and official games. Host, no JAX."""
