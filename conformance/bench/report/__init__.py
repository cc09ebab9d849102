"""What measurements and comparisons look like: terminal, pull request, page."""
