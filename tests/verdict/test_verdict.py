from __future__ import annotations

import pytest

from conformance.verdict.outcomes import Outcome
from conformance.verdict.reaching import reach_verdict
from conformance.verdict.verdict import FAILED, PASSED, WARNED, NotCertified
from tests.verdict.samples import NOW, assessment, hang, one_cause_that_blocks, outcome, verdict

UNMET = ["failed", "blocked", "not-run", "error"]


def test_a_backbone_that_meets_every_clause_is_certified() -> None:
    assert (verdict().result, verdict().certified, verdict().exit_status) == (PASSED, True, 0)


@pytest.mark.parametrize("how", UNMET)
def test_an_unmet_must_denies_the_certificate(how: str) -> None:
    judged = verdict(outcome("PAD-03", how))
    assert (judged.result, judged.exit_status) == (FAILED, 1)


@pytest.mark.parametrize("how", UNMET)
def test_an_unmet_should_is_a_warning(how: str) -> None:
    judged = verdict(outcome("PAD-04", how))
    assert (judged.result, judged.exit_status) == (WARNED, 0)
    assert [warned.id for warned in judged.warned] == ["PAD-04"]


def test_what_is_blocked_is_not_counted_among_what_is_to_be_mended() -> None:
    assert one_cause_that_blocks().reasons_for_denial == ("1 MUST not met, 2 MUSTs blocked",)
    assert verdict(outcome("PAD-03", "blocked", root_cause="PAD-01")).reasons_for_denial == (
        "1 MUST blocked",
    )
    assert hang().reasons_for_denial == ("the run was cut short", "1 MUST not run")


def test_what_does_not_apply_never_denies() -> None:
    assert verdict(outcome("PAD-03", "not-applicable")).result == PASSED


def test_a_clause_that_said_nothing_did_not_run() -> None:
    judged = verdict(without=("PAD-03",))
    assert judged.result == FAILED
    assert [silent.id for silent in judged.not_run] == ["PAD-03"]


def test_a_clause_that_nobody_expected_is_an_error_that_names_it() -> None:
    judged = verdict(outcome("XYZ-99"))
    assert judged.result == FAILED
    assert judged.root_causes[0].outcome.id == "XYZ-99"
    assert "profiles.toml disagree" in judged.root_causes[0].outcome.summary


def test_two_outcomes_of_one_clause_are_an_error() -> None:
    doubled = assessment()
    judged = reach_verdict(assessment(outcomes=(*doubled.outcomes, outcome("PAD-03"))), now=NOW)
    assert judged.result == FAILED
    assert judged.root_causes[0].outcome.summary.startswith("2 outcomes arrived for PAD-03")


def test_the_subjects_process_cannot_make_a_should_of_a_must() -> None:
    softened = outcome("PAD-03", "failed")
    object.__setattr__(softened, "level", "SHOULD")
    assert verdict(softened).result == FAILED


def test_the_empty_run_is_no_certificate() -> None:
    assert verdict(profiles=(), outcomes=()).result == FAILED


def test_a_run_in_which_nothing_applied_is_no_certificate() -> None:
    inapplicable = [outcome(done.id, "not-applicable") for done in assessment().outcomes]
    assert verdict(*inapplicable).result == FAILED


def test_a_run_that_broke_down_is_no_certificate_even_with_every_outcome_in() -> None:
    assert verdict(breakdown="its stream was cut off").result == FAILED


def test_a_run_of_chosen_clauses_never_certifies() -> None:
    judged = reach_verdict(assessment(outcomes=(outcome("PAD-03"),)), only=("PAD-03",), now=NOW)
    assert judged.result == WARNED
    assert not judged.certified
    judged.raise_if_failed()
    assert judged.reasons_for_denial == ("a run of chosen clauses never certifies",)
    assert [asked.id for asked in judged.asked] == ["PAD-03"]


def test_the_root_cause_comes_first_with_what_it_blocked() -> None:
    first = one_cause_that_blocks().root_causes[0]
    assert first.outcome.id == "PAD-01"
    assert [blocked.id for blocked in first.blocked] == ["PAD-02", "PAD-03", "PAD-04"]


def test_the_root_cause_is_found_through_needs_where_the_runner_named_none() -> None:
    judged = verdict(
        outcome("PAD-01", "failed"), outcome("PAD-02", "blocked"), outcome("PAD-04", "blocked")
    )
    assert [(cause.outcome.id, len(cause.blocked)) for cause in judged.root_causes] == [
        ("PAD-01", 2)
    ]


def test_denying_causes_come_before_shoulds_and_failures_before_broken_checks() -> None:
    judged = verdict(
        outcome("PAD-04", "failed"), outcome("CON-01", "error"), outcome("EMB-01", "failed")
    )
    assert [cause.outcome.id for cause in judged.root_causes] == ["EMB-01", "CON-01", "PAD-04"]


def test_a_should_that_blocks_a_must_denies() -> None:
    judged = verdict(outcome("PAD-04", "failed"), outcome("EMB-01", "blocked", root_cause="PAD-04"))
    assert judged.root_causes[0].denies


def test_a_blocked_clause_whose_cause_was_not_asked_for_stands_for_itself() -> None:
    blocked = outcome("PAD-03", "blocked", root_cause="CON-01")
    judged = reach_verdict(assessment(outcomes=(blocked,)), only=("PAD-03",), now=NOW)
    assert [cause.outcome.id for cause in judged.root_causes] == ["PAD-03"]


def test_clauses_left_over_by_a_hang_are_no_causes() -> None:
    assert hang().root_causes == ()
    assert [silent.id for silent in hang().not_run] == ["PAD-03", "PAD-04"]


def test_raise_if_failed_leads_with_the_cause() -> None:
    with pytest.raises(
        NotCertified,
        match=r"(?s)NOT CERTIFIED.*PAD-01 failed: the pad id is 2 \(blocks 3 clauses\)",
    ):
        one_cause_that_blocks().raise_if_failed()
    verdict(outcome("PAD-04", "failed")).raise_if_failed()


def test_a_verdict_reads_as_text() -> None:
    assert (
        repr(verdict())
        == "CERTIFIED mistral-v0.1-7b-instruct [core, training]: 7 clauses: 7 passed"
    )


def test_counts_are_in_the_order_of_the_vocabulary() -> None:
    assert list(one_cause_that_blocks().counts) == [Outcome.PASSED, Outcome.FAILED, Outcome.BLOCKED]


def test_sources_that_are_unknown_are_noted() -> None:
    assert "cannot say which code" in verdict(sources={}).notes[0]


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(KeyError, match="numerics"):
        verdict(profiles=("numerics",))
