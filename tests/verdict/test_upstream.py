from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conformance.verdict.reaching import reach_verdict
from conformance.verdict.upstream import InvalidDefects, KnownDefect, read_defects
from conformance.verdict.verdict import FAILED, PASSED, WARNED
from conformance.verdict.waivers import Waiver
from tests.verdict.samples import NOW, assessment, outcome

DEFECT = KnownDefect(
    ">=4.40,<4.41",
    "MistralForCausalLM",
    "PAD-03",
    "https://example.org/1",
    "a window of 16 sees 17",
    "sees 17",
)
ENTRY = """
[[defect]]
transformers = ">=4.40,<4.41"
model = "MistralForCausalLM"
clause = "PAD-03"
issue = "https://example.org/1"
measured = "a window of 16 sees 17"
shows = "sees 17"
"""


def test_a_known_defect_of_the_library_warns() -> None:
    judged = reach_verdict(
        assessment(outcome("PAD-03", "failed", summary="it sees 17")), defects=[DEFECT], now=NOW
    )
    assert judged.result == WARNED
    assert judged.warned[0].evidence["known defect"]["measured"] == "a window of 16 sees 17"


def test_another_failure_of_the_same_clause_is_the_subjects() -> None:
    judged = reach_verdict(
        assessment(outcome("PAD-03", "failed", summary="it sees 15")), defects=[DEFECT], now=NOW
    )
    assert judged.result == FAILED


def test_what_cannot_show_need_not_reproduce() -> None:
    of_windows = replace(DEFECT, only_with="window")
    for window, result in ((None, PASSED), (16, FAILED)):
        passed = outcome("PAD-03", "passed", evidence={"window": window})
        assert reach_verdict(assessment(passed), defects=[of_windows], now=NOW).result == result


def test_a_derived_class_may_have_mended_it() -> None:
    environment = {**assessment().environment, "model_class_is_the_librarys": False}
    assert (
        reach_verdict(assessment(environment=environment), defects=[DEFECT], now=NOW).result
        == PASSED
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"packages": {"transformers": "4.57.1"}, "model_class": "MistralForCausalLM"},
        {"packages": {"transformers": "4.40.1"}, "model_class": "LlamaForCausalLM"},
        {"packages": {"transformers": "from a fork"}, "model_class": "MistralForCausalLM"},
        {},
    ],
)
def test_another_version_or_model_is_not_excused(environment: dict[str, str]) -> None:
    shown = outcome("PAD-03", "failed", summary="it sees 17")
    unexcused = assessment(shown, environment=environment)
    assert reach_verdict(unexcused, defects=[DEFECT], now=NOW).result == FAILED
    assert (
        reach_verdict(assessment(environment=environment), defects=[DEFECT], now=NOW).result
        == PASSED
    )


def test_an_entry_that_no_longer_reproduces_is_an_error() -> None:
    judged = reach_verdict(assessment(), defects=[DEFECT], now=NOW)
    assert judged.result == FAILED
    assert "no longer reproduces: remove it" in judged.root_causes[0].outcome.summary


def test_an_entry_says_nothing_of_a_clause_that_was_not_judged() -> None:
    judged = reach_verdict(assessment(outcome("PAD-03", "not-run")), defects=[DEFECT], now=NOW)
    assert judged.root_causes == ()
    assert judged.result == FAILED


def test_a_waiver_is_not_used_up_on_a_known_defect() -> None:
    waiver = Waiver("PAD-03", "a reason", NOW.date(), "Ada")
    shown = outcome("PAD-03", "failed", summary="it sees 17")
    judged = reach_verdict(assessment(shown), defects=[DEFECT], waivers=[waiver], now=NOW)
    assert "unused: the clause is upstream" in judged.notes[0]


def test_entries_are_read(tmp_path: Path) -> None:
    path = tmp_path / "upstream.toml"
    path.write_text(ENTRY)
    assert read_defects(path) == (DEFECT,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY.replace(">=4.40,<4.41", "four"), "should be versions such as"),
        (ENTRY.replace("PAD-03", "PAD-77"), "which is not a clause"),
        (ENTRY.replace('measured = "a window of 16 sees 17"', ""), "should have exactly"),
        (ENTRY.replace('"a window of 16 sees 17"', "17"), "a text that is not empty"),
        ("[[defect", "are not TOML"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "upstream.toml"
    path.write_text(text)
    with pytest.raises(InvalidDefects, match=message):
        read_defects(path)
