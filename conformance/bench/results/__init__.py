"""Interprets stored numbers. Imports no torch and starts no process."""
