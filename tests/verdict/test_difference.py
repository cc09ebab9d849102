from __future__ import annotations

from conformance.verdict.difference import Change, changed_clauses, changed_conditions
from tests.verdict.samples import outcome, verdict


def test_equal_verdicts_do_not_differ() -> None:
    assert changed_clauses(verdict(), verdict()) == changed_conditions(verdict(), verdict()) == ()


def test_what_got_worse_comes_first() -> None:
    before, after = verdict(outcome("CON-01", "failed")), verdict(outcome("PAD-03", "failed"))
    assert changed_clauses(before, after) == (
        Change("PAD-03", "passed", "failed"),
        Change("CON-01", "failed", "passed"),
    )


def test_conditions_are_compared() -> None:
    changes = changed_conditions(verdict(), verdict(environment={"packages": "5.0"}, seed=1))
    assert {change.what for change in changes} == {
        "seed",
        "environment packages",
        "environment model_class",
    }
