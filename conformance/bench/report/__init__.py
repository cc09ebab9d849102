"""Shows measurements and comparisons: on a terminal, in a pull request, as a page."""
