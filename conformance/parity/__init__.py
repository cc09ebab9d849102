"""Comparing two computations of the same thing."""
