"""The suite's worth is what it kills: every planted defect must fail exactly the clauses recorded with it."""

from __future__ import annotations

import zlib

from conformance.catalogue import expected_clauses
from tests.kill_matrix import DOCUMENT, document, run_mutants
from tests.matrix import failed
from tests.mutants import all_mutants

#: One defect in so many is planted where the whole matrix would take too long.
SAMPLE = 8


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in all_mutants()]
    assert len(names) == len(set(names))


def test_every_clause_has_a_planted_defect() -> None:
    missing = set(expected_clauses(["core"])) - {mutant.clause for mutant in all_mutants()}
    assert not missing, f"a clause without a killed mutant is not done: {sorted(missing)}"


def test_every_planted_defect_dies_by_its_clauses(mutants_to_run: str) -> None:
    everyone = all_mutants()
    chosen = {
        "full": everyone,
        "sample": [mutant for mutant in everyone if zlib.crc32(mutant.name.encode()) % SAMPLE == 0],
        "none": [],
    }[mutants_to_run]
    wrong = {
        mutant.name: f"fails {sorted(failed(outcomes))}, recorded {sorted(mutant.fails)}"
        for mutant, outcomes in run_mutants(chosen)
        if failed(outcomes) != mutant.fails
    }
    assert not wrong, wrong


def test_the_document_tells_the_matrix(mutants_to_run: str) -> None:
    if mutants_to_run == "full":
        assert DOCUMENT.read_text(encoding="utf-8") == document(all_mutants()), (
            "run python -m tests.kill_matrix"
        )
