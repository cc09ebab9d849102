"""Never cry wolf: the references under many seeds. ``python -m tests.false_alarms [SEEDS] [BUDGET]``

Prints every clause that a reference did not meet, and the 95 % upper bound on the rate of false alarms a run.
"""

from __future__ import annotations

import sys
import time

import transformers

from conformance.target import BUILT_IN_TARGETS, resolve
from conformance.verdict.outcomes import Outcome
from tests.matrix import Case, judge_in_forks


def upper_bound(alarms: int, runs: int, confidence: float = 0.95) -> float:
    """Clopper–Pearson's one-sided upper bound on a rate of which ``alarms`` in ``runs`` were seen."""
    from math import comb

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(comb(runs, k) * middle**k * (1 - middle) ** (runs - k) for k in range(alarms + 1))
        low, high = (middle, high) if tail > 1 - confidence else (low, middle)
    return high


def main(seeds: int = 20, budget: str = "standard") -> int:
    started = time.monotonic()
    cases = [
        Case(f"{name} seed {seed}", resolve(name).factory, name, {}, seed=seed, budget=budget)
        for seed in range(1, seeds + 1)
        for name in BUILT_IN_TARGETS
    ]
    alarms = 0
    for case, outcomes in judge_in_forks(cases, None):
        unmet = {
            clause: found
            for clause, found in outcomes.items()
            if found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE}
        }
        alarms += bool(unmet) or not outcomes
        if not outcomes:
            print(f"{case.name}: died", flush=True)
        for clause, found in unmet.items():
            print(
                f"{case.name}: {clause} {found.outcome}: {found.summary[:400]} {found.counterexample or ''}",
                flush=True,
            )
    print(
        f"transformers {transformers.__version__}, budget {budget}: {alarms} false alarms in {len(cases)} runs, "
        f"95 % upper bound {100 * upper_bound(alarms, len(cases)):.2f} % a run, {time.monotonic() - started:.0f} s"
    )
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 20, sys.argv[2] if sys.argv[2:] else "standard"))
