"""Advantages and rewards over a whole step's rows. Host: NumPy only."""
