"""The process in which benchmarks run."""
