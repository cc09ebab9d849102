"""The process that starts the measuring processes."""
