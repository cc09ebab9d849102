from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from conformance.verdict.outcomes import ClauseOutcome
from conformance.verdict.reaching import reach_verdict
from conformance.verdict.verdict import FAILED, WARNED, Verdict
from conformance.verdict.waivers import InvalidWaivers, Waiver, read_waivers
from tests.verdict.samples import NOW, assessment, outcome

GOOD = """
[[waiver]]
id = "PAD-03"
reason = "the trainer masks it"
expires = 2027-01-31
by = "Ada"
"""


def waiver(clause: str, expires: date = date(2027, 1, 31)) -> Waiver:
    return Waiver(clause, "the trainer masks it", expires, "Ada")


def judged(waivers: list[Waiver], *departures: ClauseOutcome) -> Verdict:
    return reach_verdict(assessment(*departures), waivers=waivers, now=NOW)


def read(tmp_path: Path, text: str) -> tuple[Waiver, ...]:
    path = tmp_path / "waivers.toml"
    path.write_text(text)
    return read_waivers(path)


def test_a_waived_must_warns() -> None:
    result = judged([waiver("PAD-03")], outcome("PAD-03", "failed"))
    assert result.result == WARNED
    assert result.warned[0].evidence["waiver"] == {
        "instead "
            "of": "failed", "reason": "the trainer masks it", "expires": "2027-01-31", "by": "Ada",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["blocked", "error"])
def test_blocked_and_broken_clauses_can_be_waived(how: str) -> None:
    assert judged([waiver("PAD-03")], outcome("PAD-03", how)).result == WARNED


def test_a_should_can_be_waived() -> None:
    assert judged([waiver("PAD-04")], outcome("PAD-04", "failed")).notes == ()


def test_a_clause_that_did_not_run_cannot_be_waived() -> None:
    result = judged([waiver("PAD-03")], outcome("PAD-03", "not-run"))
    assert result.result == FAILED
    assert "nothing to excuse" in result.notes[0]


def test_what_a_waived_clause_blocks_still_denies_until_it_is_waived_too() -> None:
    departures = outcome("PAD-01", "failed"), outcome("PAD-02", "blocked", root_cause="PAD-01")
    assert judged([waiver("PAD-01")], *departures).result == FAILED
    assert judged([waiver("PAD-01"), waiver("PAD-02")], *departures).result == WARNED


def test_the_cause_is_still_named_when_it_is_waived_and_what_it_blocks_is_not() -> None:
    result = judged(
        [waiver("PAD-01")],
        outcome("PAD-01", "failed"),
        outcome("PAD-02", "blocked", root_cause="PAD-01"),
    )
    assert [(cause.outcome.id, cause.denies) for cause in result.root_causes] == [("PAD-01", True)]


def test_a_waiver_holds_on_its_last_day_and_not_after() -> None:
    assert (
        judged([waiver("PAD-03", date(2026, 11, 23))], outcome("PAD-03", "failed")).result == WARNED
    )
    expired = judged([waiver("PAD-03", date(2026, 11, 22))], outcome("PAD-03", "failed"))
    assert expired.result == FAILED
    assert "expired on 2026-11-22 and was not applied" in expired.notes[0]


def test_a_waiver_of_a_clause_that_passed_is_reported_as_unused() -> None:
    assert "unused: the clause is passed" in judged([waiver("PAD-03")]).notes[0]


def test_a_waiver_of_a_clause_outside_the_profiles_is_reported_as_unused() -> None:
    result = reach_verdict(
        assessment(profiles=("core",), without=("EMB-11",)), waivers=[waiver("EMB-11")], now=NOW
    )
    assert "not in these profiles" in result.notes[0]


def test_a_waivers_file_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == (waiver("PAD-03"),)
    assert read(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "are not TOML"),
        ("waiver = 3", "should be a list of tables"),
        ("waivers = []", "unknown key `waivers`"),
        (GOOD.replace("PAD-03", "PAD-77"), "waives `PAD-77`, which is not a clause"),
        (GOOD.replace('reason = "the trainer masks it"', ""), "has no `reason`"),
        (GOOD.replace("the trainer masks it", "  "), "a text that is not empty"),
        (GOOD.replace('"PAD-03"', "3"), "`id` of waiver 1 .* is 3"),
        (GOOD.replace("2027-01-31", '"2027-01-31"'), "a date without quotes"),
        (GOOD.replace("2027-01-31", "2027-01-31T00:00:00"), "a date without quotes"),
        (GOOD + 'severity = "low"', "unknown key `severity`"),
        (GOOD + GOOD, "waives PAD-03 twice"),
    ],
)
def test_a_bad_waivers_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidWaivers, match=message):
        read(tmp_path, text)


def test_a_waivers_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidWaivers, match="No such file"):
        read_waivers(tmp_path / "absent.toml")
    with pytest.raises(InvalidWaivers, match="cannot be read"):
        read_waivers(tmp_path)
