"""Judging: what a clause's ending means, in which order, and what a failure blocks. No backbone is
needed for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conformance.assertions import BLOCKS_USERS_OF, Blocked, ClauseFailure, NotApplicable
from conformance.catalogue import MUST, requirement
from conformance.places import PACKAGE
from conformance.run.judging import judge
from conformance.suite import collection
from conformance.verdict.outcomes import ClauseOutcome, Outcome


class FakeSubject:
    """Has every member but one."""

    @staticmethod
    def factory(backbone_id: str) -> None: ...

    def lacks(self, member: str) -> bool:
        return member == "absent_member"

    optional_absent = ("declared_absent",)


def outcomes_of(monkeypatch: pytest.MonkeyPatch, *tests: Any) -> dict[str, ClauseOutcome]:
    by_id: dict[str, tuple[Any, ...]] = {}
    for test in tests:
        by_id[test.requirement.id] = (*by_id.get(test.requirement.id, ()), test)
    monkeypatch.setattr(collection, "clause_tests", lambda: by_id)
    return {o.id: o for o in judge(FakeSubject(), list(by_id)) if isinstance(o, ClauseOutcome)}  # type: ignore[arg-type]


def clause(clause_id: str, ending: Any = None, **options: Any) -> Any:
    @requirement(clause_id, MUST, **options)
    def test(subject: Any) -> None:
        """A statement."""
        if isinstance(ending, BaseException):
            raise ending

    return test


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (None, Outcome.PASSED),
        (ClauseFailure("seen", "wanted", "do"), Outcome.FAILED),
        (NotApplicable("declared so"), Outcome.NOT_APPLICABLE),
        (Blocked("CON-03"), Outcome.BLOCKED),
        (SystemExit(0), Outcome.FAILED),
    ],
)
def test_endings(monkeypatch: pytest.MonkeyPatch, ending: Any, outcome: Outcome) -> None:
    assert outcomes_of(monkeypatch, clause("X-01", ending))["X-01"].outcome is outcome


def test_an_exception_of_the_subjects_code_is_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes_of(monkeypatch, clause("X-01", RuntimeError("the subject's own")))["X-01"]
    assert found.outcome is Outcome.FAILED
    assert "RuntimeError: the subject's own" in found.summary


@pytest.mark.parametrize(
    "file", ["suite/test_pad_token.py", "subject/subject.py", "parity/gates.py", "catalogue.py"]
)
def test_an_exception_of_our_code_is_an_error(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    broken = clause_in(PACKAGE / file)
    assert outcomes_of(monkeypatch, broken)["X-01"].outcome is Outcome.ERROR


@pytest.mark.parametrize("file", ["conformance_mine.py", "conformance_suite/test_mine.py"])
def test_what_only_looks_like_our_code_is_the_subjects(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    found = outcomes_of(monkeypatch, clause_in(PACKAGE.parent / file))["X-01"]
    assert found.outcome is Outcome.FAILED


def test_code_without_a_file_is_the_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE)
    assert outcomes_of(monkeypatch, clause_in("<string>"))["X-01"].outcome is Outcome.FAILED


def clause_in(file: str | Path) -> Any:
    """A clause whose code lies in `file`, as a traceback tells it, and which divides by zero."""
    namespace: dict[str, Any] = {}
    source = "def test(subject):\n    'A statement.'\n    1 / 0\n"
    exec(compile(source, str(file), "exec"), namespace)
    return requirement("X-01", MUST)(namespace["test"])


def test_what_hangs_on_a_failure_is_blocked_by_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes_of(
        monkeypatch,
        clause("C-01", needs=["B-01"]),
        clause("B-01", needs=["A-01"]),
        clause("A-01", ClauseFailure("seen", "wanted", "do")),
        clause("D-01"),
    )
    assert [found[name].outcome for name in ("A-01", "B-01", "C-01", "D-01")] == [
        Outcome.FAILED, Outcome.BLOCKED, Outcome.BLOCKED, Outcome.PASSED,
    ]  # fmt: skip
    assert found["C-01"].root_cause == "A-01"


def test_what_blocks_a_clause_is_told_where_its_cause_is_not_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @requirement("X-01", MUST)
    def test(subject: Any) -> None:
        """A statement."""
        try:
            raise ImportError("flash")
        except ImportError as error:
            raise Blocked("CON-05") from error

    found = outcomes_of(monkeypatch, test)["X-01"]
    assert found.outcome is Outcome.BLOCKED
    assert found.evidence["exception"] == "ImportError"
    assert "test_judging.py:" in found.evidence["where"]


def test_a_missing_member_blocks_only_what_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes_of(
        monkeypatch, clause("A-01", uses=["absent_member"]), clause("B-01", uses=["present"])
    )
    assert found["A-01"].outcome is Outcome.BLOCKED
    assert found["A-01"].root_cause == "CON-03"
    assert found["B-01"].outcome is Outcome.PASSED


def test_one_failing_test_fails_a_clause_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes_of(
        monkeypatch, clause("A-01"), clause("A-01", ClauseFailure("seen", "wanted", "do"))
    )
    assert found["A-01"].outcome is Outcome.FAILED
    assert found["A-01"].summary == "seen, but should be wanted. To mend it: do."


def test_a_clause_without_a_statement_is_refused() -> None:
    with pytest.raises(ValueError, match="docstring"):

        @requirement("X-01", MUST)
        def test(subject: Any) -> None: ...


def test_a_member_found_unusable_blocks_those_who_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: dict[str, Any] = {BLOCKS_USERS_OF: "forward"}
    found = outcomes_of(
        monkeypatch,
        clause("X-01", ClauseFailure("seen", "wanted", "do", **broken)),
        clause("X-02", uses=["forward"]),
        clause("X-03"),
    )
    assert found["X-02"].outcome is Outcome.BLOCKED
    assert found["X-02"].root_cause == "X-01"
    assert found["X-03"].outcome is Outcome.PASSED
