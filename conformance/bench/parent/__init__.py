"""The process that starts those that measure."""
