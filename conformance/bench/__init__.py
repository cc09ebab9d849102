"""GPU and CPU regression benchmarks. docs/benchmarks.md says how they decide.

`child/` runs in the process that measures, `parent/` starts such processes, `results/` interprets
their numbers (no torch, no process), `report/` shows the outcome.
"""
