"""One run, from a request to an assessment."""
