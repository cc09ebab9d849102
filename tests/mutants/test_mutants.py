"""The suite's worth is what it kills: every planted defect must fail exactly the clauses recorded
with it.

Judging one by its own clauses takes about 2 s of one core, and by a whole profile many times that,
so a change is held to the first for all defects and to the second for a sample (`--mutants own`);
`tox -e matrix` judges all by the whole profile (`--mutants full`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import pytest
import transformers
from packaging.version import Version

from conformance.catalogue import MUST, expected_clauses
from conformance.verdict.outcomes import Assessment, ClauseOutcome, Outcome
from conformance.verdict.verdict import Verdict
from tests.experiments.kill_matrix import DOCUMENT, document, run_mutants
from tests.forks import failed
from tests.mutants import Mutant, all_mutants

SAMPLE = 24
"""One defect in so many is judged on the older generations of transformers."""
WHOLE = 96
"""One in so many is judged by its whole profile where all would take too long."""
NOT_AT_THIS_BUDGET = {"FWD-12"}
"""Judged at the thorough budget alone; tests/suite/test_compile.py plants its defect."""


def first_reported(outcomes: Mapping[str, ClauseOutcome]) -> str:
    """The clause that a report on these outcomes names first."""
    assessment = Assessment(
        "target", "id", ("default",), tuple(outcomes.values()),
        environment={}, declarations={}, sources={}, hub={},
        weights="probe", device="cpu", seed=0, budget="standard",
    )  # fmt: skip
    return Verdict(assessment).root_causes[0].outcome.id


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a planted defect, so that they can share the cores and each be run by name."""
    if "mutant" in metafunc.fixturenames:
        extent = metafunc.config.getoption("--mutants")
        known = [] if extent == "none" else all_mutants()
        chosen = [one for one in known if extent != "sample" or in_sample(one)]
        metafunc.parametrize("mutant", chosen, ids=[mutant.name for mutant in chosen])


def in_sample(mutant: Mutant, share: int = SAMPLE) -> bool:
    """Whether the defect is one of the sample, one in `share`, the same in every run."""
    return zlib.crc32(mutant.name.encode()) % share == 0


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in all_mutants()]
    assert len(names) == len(set(names))


def test_every_clause_has_a_planted_defect() -> None:
    missing = (
        set(expected_clauses(["default"]))
        - {mutant.clause for mutant in all_mutants()}
        - NOT_AT_THIS_BUDGET
    )
    assert not missing, f"a clause without a killed mutant is not done: {sorted(missing)}"


def test_the_planted_defect_dies_by_its_clauses(
    mutant: Mutant, request: pytest.FixtureRequest
) -> None:
    extent = request.config.getoption("--mutants")
    own = extent == "sample" or (extent == "own" and not in_sample(mutant, WHOLE))
    ((_, outcomes),) = run_mutants([mutant], own=own)
    found, expected = failed(outcomes), mutant.expected(outcomes)
    # Some fail others of their clauses by what clauses before them did.
    needed = expected & {mutant.clause} if own else expected
    # What an older library itself gets wrong may stand before the planted defect. On the newest one
    # none may go unseen.
    seen = mutant.clause in found or Version(transformers.__version__) < Version("5")
    assert seen, outcomes[mutant.clause].summary
    assert needed <= found <= expected, "\n".join(
        f"{clause} {outcomes[clause].outcome}: {outcomes[clause].summary}"
        for clause in sorted(found)
    )
    # What is reported first is the cause, which is told by what it blocks; a MUST stands before a
    # SHOULD that names it.
    levels = {outcomes[clause].level for clause in found}
    if (
        not own
        and mutant.clause in found
        and (outcomes[mutant.clause].level == MUST or MUST not in levels)
    ):
        assert first_reported(outcomes) == mutant.clause
    # A check that breaks on a defect has not found it.
    assert not [clause for clause in found if outcomes[clause].outcome is Outcome.ERROR]
    if mutant.module:
        assert outcomes[mutant.clause].evidence["module"] == mutant.module


def test_the_document_tells_the_matrix(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--mutants") not in ("full", "own"):
        pytest.skip("the document tells of the whole matrix, on the newest transformers")
    assert DOCUMENT.read_text(encoding="utf-8") == document(all_mutants()), (
        "run python -m tests.experiments.kill_matrix"
    )
