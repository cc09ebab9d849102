"""The clauses: one test module an area, one test (or a few) a clause, each test short enough to be
its own specification."""
