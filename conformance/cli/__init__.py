"""The command line. Nothing heavy is imported until a command needs it."""

from conformance.cli.app import app, main

__all__ = ["app", "main"]
