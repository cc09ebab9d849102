"""Never cry wolf: the references, or the sound backbones of `tests/sound`, or a stranger's class
for models without a recipe (`tests/published`), under many seeds.
`python -m tests.experiments.false_alarms [SEEDS] [BUDGET] [--sound | --strangers]`

Prints every clause that a reference, and every MUST that a stranger's class did not meet, and the
95 % upper bound on the rate of false alarms a run.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers

from conformance.catalogue import MUST, catalogue
from conformance.rates import rate_bounds
from conformance.subject.target import BUILT_IN_TARGETS, resolve
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests.forks import Case, judge_in_forks
from tests.published.strangers import stranger_cases
from tests.sound import all_sound


def main(
    seeds: int = 20, budget: str = "standard", *, sound: bool = False, strangers: bool = False
) -> int:
    started = time.monotonic()
    folders = TemporaryDirectory(prefix="conformance-published-")
    published = stranger_cases(Path(folders.name)) if strangers else []
    shoulds = frozenset(one.id for one in catalogue().values() if one.level != MUST)
    references = [Case(name, resolve(name).factory, name, {}) for name in BUILT_IN_TARGETS]
    known = {one.name: one for one in all_sound()} if sound else {}
    variants = [
        Case(one.name, one.factory, one.backbone_id, one.declared, recipes=one.recipes)
        for one in known.values()
    ]
    cases = [
        replace(case, seed=seed, budget=budget)
        for seed in range(1, seeds + 1)
        for case in (published or (variants if sound else references))
    ]
    alarms = runs = 0
    try:
        for case, outcomes in judge_in_forks(cases, None):
            runs += 1
            missed = known[case.name].shoulds if case.name in known else frozenset[str]()
            missed = shoulds if strangers else missed
            alarms += _tell_what_is_unmet(case, outcomes, missed)
    except KeyboardInterrupt:
        print(f"interrupted after {runs} of {len(cases)} runs")
    print(
        f"transformers {transformers.__version__}, budget {budget}: {alarms} false alarms in "
        f"{runs} runs, "
        f"95 % upper bound {100 * rate_bounds(alarms, runs)[1]:.2f} % a run, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if alarms else 0


def _tell_what_is_unmet(
    case: Case, outcomes: dict[str, ClauseOutcome], missed: frozenset[str]
) -> bool:
    """Print what is unmet, but for the SHOULD clauses that a sound backbone truly misses."""
    unmet = {
        clause: found
        for clause, found in outcomes.items()
        if clause not in missed
        and found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.UPSTREAM}
    }
    for clause, found in unmet.items():
        told = f"{found.outcome}: {found.summary[:400]} {found.counterexample or ''}"
        print(f"{case.name} seed {case.seed}: {clause} {told}", flush=True)
    if not outcomes:
        print(f"{case.name} seed {case.seed}: died", flush=True)
    return bool(unmet) or not outcomes


if __name__ == "__main__":
    given = [one for one in sys.argv[1:] if not one.startswith("--")]
    sys.exit(
        main(
            int(given[0]) if given else 20,
            given[1] if given[1:] else "standard",
            sound="--sound" in sys.argv,
            strangers="--strangers" in sys.argv,
        )
    )
