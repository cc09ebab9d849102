"""GPU and CPU regression benchmarks: timers, workloads, paired comparison, history. docs/benchmarks.md says how it decides."""
