"""The backbone under test: its target, its declarations, and what clauses see of it. Independent of
clauses and runs."""
