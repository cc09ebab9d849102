"""The project's tests. README.md says what is where, and how long it takes."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The checkout."""
