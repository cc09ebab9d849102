"""One subject under two sets of releases: what a step from one to the other changes."""
