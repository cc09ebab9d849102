"""Never cry wolf: the references under many seeds. `python -m tests.experiments.false_alarms
[SEEDS] [BUDGET]`

Prints every clause that a reference did not meet, and the 95 % upper bound on the rate of false
alarms a run.
"""

from __future__ import annotations

import sys
import time

import transformers

from conformance.rates import rate_bounds
from conformance.subject.target import BUILT_IN_TARGETS, resolve
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests.forks import Case, judge_in_forks


def main(seeds: int = 20, budget: str = "standard") -> int:
    started = time.monotonic()
    cases = [
        Case(f"{name} seed {seed}", resolve(name).factory, name, {}, seed=seed, budget=budget)
        for seed in range(1, seeds + 1)
        for name in BUILT_IN_TARGETS
    ]
    alarms = runs = 0
    try:
        for case, outcomes in judge_in_forks(cases, None):
            runs += 1
            alarms += _tell_what_is_unmet(case, outcomes)
    except KeyboardInterrupt:
        print(f"interrupted after {runs} of {len(cases)} runs")
    print(
        f"transformers {transformers.__version__}, budget {budget}: {alarms} false alarms in "
        f"{runs} runs, "
        f"95 % upper bound {100 * rate_bounds(alarms, runs)[1]:.2f} % a run, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if alarms else 0


def _tell_what_is_unmet(case: Case, outcomes: dict[str, ClauseOutcome]) -> bool:
    unmet = {
        clause: found
        for clause, found in outcomes.items()
        if found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.UPSTREAM}
    }
    for clause, found in unmet.items():
        shown = found.counterexample or ""
        print(f"{case.name}: {clause} {found.outcome}: {found.summary[:400]} {shown}", flush=True)
    if not outcomes:
        print(f"{case.name}: died", flush=True)
    return bool(unmet) or not outcomes


if __name__ == "__main__":
    sys.exit(
        main(int(sys.argv[1]) if sys.argv[1:] else 20, sys.argv[2] if sys.argv[2:] else "standard")
    )
