"""The suite's worth is what it kills: every planted defect must fail exactly the clauses recorded with it.

``python -m tests.test_mutants [NAME…]`` prints what each named defect (all without names) fails, recorded or not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from conformance.catalogue import expected_clauses
from conformance.verdict.outcomes import ClauseOutcome
from tests.matrix import Case, failed, judge_in_forks
from tests.mutants import Mutant, all_mutants


def run_mutants(mutants: Iterable[Mutant], hub: Path | None = None) -> Iterator[tuple[Mutant, dict[str, ClauseOutcome]]]:
    by_name = {mutant.name: mutant for mutant in mutants}
    cases = [Case(m.name, m.factory, m.backbone_id, m.declared) for m in by_name.values()]
    for case, outcomes in judge_in_forks(cases, hub):
        yield by_name[case.name], outcomes


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in all_mutants()]
    assert len(names) == len(set(names))


def test_every_clause_has_a_planted_defect() -> None:
    covered = {mutant.clause for mutant in all_mutants()}
    assert set(expected_clauses(["core"])) <= covered, "a clause without a killed mutant is not done"


@pytest.mark.matrix
def test_every_planted_defect_dies_by_its_clauses() -> None:
    wrong = {
        mutant.name: f"failed {sorted(failed(outcomes))}, recorded {sorted(mutant.fails)}"
        for mutant, outcomes in run_mutants(all_mutants())
        if failed(outcomes) != mutant.fails
    }
    assert not wrong, wrong


if __name__ == "__main__":
    chosen = [mutant for mutant in all_mutants() if not sys.argv[1:] or mutant.name in sys.argv[1:]]
    for mutant, outcomes in run_mutants(chosen):
        verdict = "ok" if failed(outcomes) == mutant.fails else "DIFFERS"
        print(f"{verdict:8}{mutant.name}: fails {sorted(failed(outcomes))}, recorded {sorted(mutant.fails)}", flush=True)
        if verdict != "ok" or sys.argv[1:]:
            for clause in sorted(failed(outcomes)):
                print(f"        {clause} {outcomes[clause].outcome}: {outcomes[clause].summary[:400]}", flush=True)
