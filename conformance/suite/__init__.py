"""The clauses: one test module per area, one test (or a few) per clause, each test short enough to
be its own specification."""
