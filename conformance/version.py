"""The version of the harness, which certificates carry. The build reads it here."""

__version__ = "0.1.0"
