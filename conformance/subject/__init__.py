"""The backbone under test: what was named, what it declares, and what clauses see of it. Knows no
clause and no run."""
