"""The clauses as tests in a test file of one's own.

    from conformance.testing import parametrize_with_clauses

    @parametrize_with_clauses(MyBackbone, "my-7b-instruct")
    def test_conformance(clause):
        clause.check()

`-k PAD-03` chooses, a clause that is not applicable is skipped, and a SHOULD that is not met is an
expected failure. Pytest's names are the clauses' IDs, which stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from conformance.catalogue import SHOULD, expected_clauses

if TYPE_CHECKING:
    from conformance.verdict.outcomes import ClauseOutcome


class Clause:
    """One clause about one backbone; `id` is its ID."""

    def __init__(self, clause_id: str, run: _Run) -> None:
        self.id = clause_id
        self._run = run

    def __repr__(self) -> str:
        return self.id

    def choose(self) -> None:
        """Say that this clause will be checked: the first check judges all that were chosen at
        once, as they share what they build. Without a choice it judges all there are."""
        self._run.chosen[self.id] = None

    def check(self) -> None:
        """Judge it, with the others that were chosen, unless that was done.

        A MUST that is not met fails the test with the words of the report, and so does a backbone
        that cannot be judged at all.
        """
        from conformance.errors import CannotAssess
        from conformance.report import narrative
        from conformance.verdict.outcomes import Outcome

        try:
            outcome = self._run.outcome_of(self.id)
        except CannotAssess as refusal:
            pytest.fail(f"the backbone cannot be judged: {refusal}", pytrace=False)
        if outcome.outcome is Outcome.NOT_APPLICABLE:
            pytest.skip(f"not applicable: {outcome.summary}")
        if outcome.outcome in (Outcome.PASSED, Outcome.UPSTREAM):
            return
        told = [f"{outcome.id} {outcome.outcome}: {narrative.headline(outcome)}"]
        told += [f"  {label}: {text}" for label, text in narrative.evidence_of(outcome)]
        if outcome.counterexample:
            told.append(f"  shown by: {narrative.counterexample_of(outcome)}")
        if outcome.level == SHOULD:
            pytest.xfail("\n".join(told))
        pytest.fail("\n".join(told), pytrace=False)


def parametrize_with_clauses(
    factory: Callable[..., Any] | str,
    backbone_id: str | None = None,
    *,
    profiles: Sequence[str] = ("default",),
    only: Sequence[str] | None = None,
    **options: Any,
) -> pytest.MarkDecorator:
    """A mark that runs a test once for each clause, given as its argument `clause`.

    The arguments are those of `check_backbone`, which runs once, in this process, when the first
    clause is checked: a backbone that crashes takes pytest along. Each worker of pytest-xdist
    judges by itself what it was given.

    Raises:
        UnknownProfile: for a profile that is not implemented.
    """
    from conformance.run.request import check_profiles

    check_profiles(profiles)
    asked = tuple(only) if only is not None else expected_clauses(profiles)
    run = _Run(factory, backbone_id, {**options, "profiles": tuple(profiles)}, asked)
    clauses = [Clause(one, run) for one in asked]
    return pytest.mark.parametrize("clause", clauses, ids=[one.id for one in clauses])


class _Run:
    """One call of `check_backbone`, made when its first outcome is asked for."""

    def __init__(
        self,
        factory: Callable[..., Any] | str,
        backbone_id: str | None,
        options: Mapping[str, Any],
        asked: tuple[str, ...],
    ) -> None:
        self.chosen: dict[str, None] = {}
        self._factory, self._backbone_id = factory, backbone_id
        self._options, self._asked = options, asked
        self._outcomes: dict[str, ClauseOutcome] = {}
        self._refusal: Exception | None = None

    def outcome_of(self, clause_id: str) -> ClauseOutcome:
        from conformance.errors import CannotAssess

        if clause_id not in self._outcomes and self._refusal is None:
            try:
                self._judge(tuple(self.chosen) or self._asked)
            except CannotAssess as refusal:
                self._refusal = refusal
        if self._refusal is not None:
            raise self._refusal
        return self._outcomes[clause_id]

    def _judge(self, clauses: tuple[str, ...]) -> None:
        from conformance.run.in_process import check_backbone

        verdict = check_backbone(self._factory, self._backbone_id, **self._options, only=clauses)
        self._outcomes.update({outcome.id: outcome for outcome in verdict.outcomes})
