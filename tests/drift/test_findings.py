"""What counts as a change between two certificates, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.drift.findings import Drift, drift
from conformance.drift.report import lines
from conformance.errors import CannotAssess
from conformance.verdict.outcomes import ClauseOutcome
from conformance.verdict.verdict import Verdict
from tests import schemas
from tests.verdict.samples import hang, outcome, verdict

SIDE = {"label": "transformers==4.40.1", "python": "/env/bin/python"}


def compared(before: Verdict, after: Verdict) -> Drift:
    """The drift, described by the schema and printed within 80 columns."""
    found = drift(before, after)
    schemas.check("drift", {**found.as_json(), "from": SIDE, "to": SIDE})
    assert max(map(len, lines(found, SIDE["label"], SIDE["label"]))) < 80
    return found


def passed(evidence: dict[str, Any]) -> ClauseOutcome:
    return outcome("PAD-01", evidence=evidence)


def reading(worst: Any, bound: float = 1e-5) -> ClauseOutcome:
    return passed({"measured": {"semantics": {"worst": worst, "bound": bound, "measured": 3}}})


def test_the_same_is_no_drift() -> None:
    found = compared(verdict(), verdict())
    assert not found.changed
    assert "Nothing changed but releases." in list(lines(found, "a", "b"))


def test_releases_alone_are_conditions() -> None:
    newer = {"packages": {"transformers": "5.23.0"}, "model_class": "MistralForCausalLM"}
    found = compared(verdict(), verdict(environment=newer))
    assert not found.changed
    assert [(one.what, one.before, one.after) for one in found.conditions] == [
        ("transformers", "4.40.1", "5.23.0")
    ]


def test_a_clause_that_got_worse_says_why() -> None:
    failed = outcome("PAD-03", "failed", evidence={"observed": "the pad id 2 is also eos"})
    found = compared(verdict(), verdict(failed))
    assert found.changed
    (change,) = found.clauses
    assert (change.id, change.before, change.after, change.worse) == (
        "PAD-03",
        "passed",
        "failed",
        True,
    )
    assert change.why == "the pad id 2 is also eos"
    told = "\n".join(lines(found, "a", "b"))
    assert "PAD-03 (worse)" in told
    assert "1 of the clauses for the worse" in told
    mended = compared(verdict(failed), verdict())
    assert mended.clauses[0].why == "the pad id 2 is also eos"
    assert not mended.clauses[0].worse


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ({"special ids": {"pad": 32000}}, {"special ids": {"pad": 32001}}, "special ids: pad"),
        ({"special ids": {"bos": 1}}, {"special ids": {"bos": None}}, "special ids: bos"),
        ({"generation eos": [2]}, {"generation eos": [2, 7]}, "generation eos"),
        ({"tokenizer": {"chat template": "aa"}}, {"tokenizer": {}}, "tokenizer: chat template"),
        ({}, {"window": 16}, "window"),
    ],
)
def test_facts_count(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    found = compared(verdict(passed(before)), verdict(passed(after)))
    assert found.changed
    assert [(one.clause, one.what) for one in found.facts] == [("PAD-01", what)]


def test_numbers_with_a_fraction_are_no_facts() -> None:
    grown = [{"layer": "0", "subject": 0.1}], [{"layer": "0", "subject": 0.2}]
    before, after = (verdict(passed({"error growth": one})) for one in grown)
    assert not compared(before, after).changed


def test_declarations_and_checkpoints_count() -> None:
    other = verdict(declarations={"bos": "prompt"})
    assert [one.what for one in compared(verdict(), other).facts] == ["declaration bos"]


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        (reading(1.63e-06), reading(1.68e-06), False),
        (reading(1e-6), reading(2.1e-6), True),
        (reading(1e-6), reading("nan"), True),
        (reading(1e-6), passed({}), False),
        (passed({}), reading(1e-6), False),
        (reading(1.0, bound=1.15), reading(1.2, bound=1.15), True),
    ],
)
def test_readings_count_if_they_moved(
    before: ClauseOutcome, after: ClauseOutcome, counts: bool
) -> None:
    found = compared(verdict(before), verdict(after))
    assert [one.counts for one in found.readings] == [counts]
    assert found.changed is counts


def test_a_clause_that_fails_for_another_reason_counts() -> None:
    sides = [
        verdict(outcome("PAD-03", "failed", summary=said))
        for said in (
            "3 ids differ (/envs/a/lib/pad.py:160 in encode)",
            "4 ids differ (/other/b/lib/pad.py:161 in encode)",
            "there is no pad token (/other/b/lib/pad.py:161 in encode)",
        )
    ]
    assert not compared(sides[0], sides[1]).changed
    (fact,) = compared(sides[0], sides[2]).facts
    assert (fact.what, fact.before) == ("summary", "3 ids differ (pad.py:160 in encode)")


def test_a_run_that_was_cut_short_is_a_change_and_two_are_refused() -> None:
    assert {one.after for one in compared(verdict(), hang()).clauses} == {"not-run"}
    with pytest.raises(CannotAssess, match="both runs were cut short"):
        drift(hang(), hang())
