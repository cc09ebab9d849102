"""What stored numbers say. Knows no torch and starts no process."""
