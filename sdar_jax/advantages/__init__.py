"""Advantages of a whole step. Device."""
