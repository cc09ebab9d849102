"""What an assessment amounts to: certified or not, why, and what to mend first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from conformance.catalogue import MUST
from conformance.verdict.certificate import PREDICATE, PREDICATE_TYPE, STATEMENT_TYPE
from conformance.verdict.outcomes import UNMET, Assessment, ClauseOutcome, Outcome
from conformance.verdict.resources import digest_of_sources
from conformance.verdict.waivers import WaiverUse

PASSED = "PASSED"
WARNED = "WARNED"
FAILED = "FAILED"


_STANDING = {Outcome.BLOCKED: "blocked", Outcome.NOT_RUN: "not run"}
"""What is said of clauses that were not judged; of all others that deny, that they are not met."""


class NotCertified(AssertionError):
    """Raised by `Verdict.raise_if_failed`; the message leads with the root causes."""


@dataclass(frozen=True)
class RootCause:
    """A clause with nothing unmet under it, and the clauses that could not be judged because of
    it."""

    outcome: ClauseOutcome
    blocked: tuple[ClauseOutcome, ...] = ()

    @property
    def denies(self) -> bool:
        """Whether the certificate is denied by this clause, or by one that it blocks."""
        return denies(self.outcome) or any(denies(blocked) for blocked in self.blocked)


@dataclass(frozen=True)
class Verdict:
    """What one assessment amounts to.

    `assessment.outcomes` are complete (every expected clause is there) and final (waivers and known
    library defects are applied). `only` names the clauses of a partial run, which never certifies.
    `configuration` holds in-toto ResourceDescriptors of everything that shaped the run; `issued_at`
    is UTC, to the second.
    """

    assessment: Assessment
    only: tuple[str, ...] | None = None
    waivers: tuple[WaiverUse, ...] = ()
    configuration: tuple[Mapping[str, Any], ...] = ()
    issued_at: str = ""
    tool_version: str = ""

    @property
    def outcomes(self) -> tuple[ClauseOutcome, ...]:
        return self.assessment.outcomes

    @cached_property
    def result(self) -> str:
        """`PASSED`, `WARNED` (certified, with waivers, library defects or unmet SHOULDs) or
        `FAILED`. A partial run that meets what was asked is `WARNED` too: nobody who reads this
        field alone may take it for a whole one."""
        if self.only is not None:
            fails = self.denying or self.assessment.breakdown is not None
            return FAILED if fails else WARNED
        if self.reasons_for_denial:
            return FAILED
        return WARNED if self.warned else PASSED

    @property
    def certified(self) -> bool:
        return self.only is None and self.result != FAILED

    @property
    def exit_status(self) -> int:
        """The exit status of `conformance certify`: 0 when certified, or when a partial run meets
        every clause it was about, 1 when not."""
        return 1 if self.result == FAILED else 0

    @cached_property
    def reasons_for_denial(self) -> tuple[str, ...]:
        """Why there is no certificate, one sentence each; empty when there is one."""
        reasons = []
        if self.assessment.breakdown is not None:
            reasons.append("the run was cut short")
        if self.only is not None:
            if self.denying:
                reasons.append(_told(self.denying, "clause"))
            reasons.append("a run of chosen clauses never certifies")
        elif self.denying:
            reasons.append(_told(self.denying, MUST))
        elif not any(
            outcome.level == MUST and outcome.outcome is Outcome.PASSED for outcome in self.outcomes
        ):
            reasons.append("not one MUST was judged and passed")
        return tuple(reasons)

    @cached_property
    def denying(self) -> tuple[ClauseOutcome, ...]:
        """The MUSTs that failed, were blocked, did not run, or whose check broke; of a partial run,
        the clauses of either level that it was about."""
        if self.only is not None:
            return tuple(outcome for outcome in self.asked if outcome.outcome in UNMET)
        return tuple(outcome for outcome in self.outcomes if denies(outcome))

    @property
    def passed(self) -> tuple[ClauseOutcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.outcome is Outcome.PASSED)

    @cached_property
    def warned(self) -> tuple[ClauseOutcome, ...]:
        """Waived clauses, known library defects, and SHOULDs that are not met."""
        denying = {outcome.id for outcome in self.denying}
        return tuple(o for o in self.asked if warns(o) and o.id not in denying)

    @cached_property
    def asked(self) -> tuple[ClauseOutcome, ...]:
        """The outcomes worth showing: all of them, or those a partial run was about."""
        if self.only is None:
            return self.outcomes
        return tuple(
            outcome
            for outcome in self.outcomes
            if outcome.id in self.only or outcome.outcome is not Outcome.NOT_RUN
        )

    @cached_property
    def not_run(self) -> tuple[ClauseOutcome, ...]:
        """The clauses that were requested and never judged."""
        return tuple(outcome for outcome in self.asked if outcome.outcome is Outcome.NOT_RUN)

    @cached_property
    def root_causes(self) -> tuple[RootCause, ...]:
        """What to mend, most urgent first: whatever denies the certificate, then failures before
        broken checks, then by how much each blocks."""
        by_id = {outcome.id: outcome for outcome in self.outcomes}
        asked = {outcome.id for outcome in self.asked}
        blocked: dict[str, list[ClauseOutcome]] = {
            outcome.id: []
            for outcome in self.outcomes
            if outcome.outcome in (Outcome.FAILED, Outcome.ERROR)
        }
        for outcome in self.outcomes:
            if outcome.outcome is Outcome.BLOCKED:
                root = _root_of(outcome, by_id)
                # A partial run did not ask for everything: a clause that was not judged explains
                # nothing.
                if root not in asked:
                    root = outcome.id
                blocked.setdefault(root, [])
                if root != outcome.id:
                    blocked[root].append(outcome)
        causes = [RootCause(by_id[root], tuple(outcomes)) for root, outcomes in blocked.items()]
        place = {outcome.id: index for index, outcome in enumerate(self.outcomes)}
        return tuple(
            sorted(
                causes,
                key=lambda cause: (
                    not cause.denies,
                    cause.outcome.outcome is not Outcome.FAILED,
                    -len(cause.blocked),
                    place[cause.outcome.id],
                ),
            )
        )

    @cached_property
    def counts(self) -> dict[Outcome, int]:
        """The number of requested clauses with each outcome, without outcomes that did not
        occur."""
        found = Counter(outcome.outcome for outcome in self.asked)
        return {outcome: found[outcome] for outcome in Outcome if found[outcome]}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know besides the outcomes: waivers without effect, unknown
        sources."""
        notes = [use.note for use in self.waivers if use.note]
        if not self.assessment.sources:
            notes.append(
                "no source file of the backbone was found: the certificate cannot say which code "
                "it is about"
            )
        return tuple(notes)

    def as_certificate(self) -> dict[str, Any]:
        """The certificate: an in-toto Statement as a JSON object. Equal verdicts give equal
        objects, in the order of their keys too."""
        sources = digest_of_sources(self.assessment.sources)
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.assessment.target, "digest": {"sha256": sources}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {field.name: field.written(self) for field in PREDICATE},
        }

    def raise_if_failed(self) -> None:
        """Do nothing for a certified backbone, or one that meets all that a partial run asked.

        Raises:
            NotCertified: naming every root cause and what it blocks.
        """
        if self.result == FAILED:
            raise NotCertified(str(self))

    def __str__(self) -> str:
        """One line for the verdict, one for each root cause."""
        lines = [f"{self.title}: {'; '.join(self.reasons_for_denial) or self.tally}"]
        if self.assessment.breakdown is not None:
            lines.append(f"  {self.assessment.breakdown}")
        lines += [
            f"  {cause.outcome.id} {cause.outcome.outcome}: "
            f"{' '.join(cause.outcome.summary.split())}"
            + (f" (blocks {_clauses(len(cause.blocked))})" if cause.blocked else "")
            for cause in self.root_causes
        ]
        return "\n".join(lines)

    __repr__ = __str__

    @property
    def title(self) -> str:
        """The verdict in two words, and the backbone that it is about."""
        standing = (
            "CERTIFIED"
            if self.certified
            else "NOT CERTIFIED"
            if self.only is None
            else "PARTIAL RUN"
        )
        return f"{standing} {self.assessment.backbone_id} [{', '.join(self.assessment.profiles)}]"

    @property
    def tally(self) -> str:
        """Counts by outcome: `68 clauses: 66 passed, 2 waived`."""
        parts = ", ".join(f"{number} {outcome}" for outcome, number in self.counts.items())
        return f"{_clauses(len(self.asked))}: {parts or 'none'}"


def denies(outcome: ClauseOutcome) -> bool:
    """Whether this outcome alone denies the certificate."""
    return outcome.level == MUST and outcome.outcome in UNMET


def warns(outcome: ClauseOutcome) -> bool:
    """Whether this outcome alone makes a certificate one with warnings."""
    excused = outcome.outcome in (Outcome.WAIVED, Outcome.UPSTREAM)
    return excused or (outcome.level != MUST and outcome.outcome in UNMET)


def _root_of(outcome: ClauseOutcome, by_id: Mapping[str, ClauseOutcome]) -> str:
    """The clause at the end of the chain of needs: as the runner reported it, else found by
    walking."""
    if outcome.root_cause is not None and outcome.root_cause in by_id:
        return outcome.root_cause
    visited = {outcome.id}
    current = outcome
    while current.outcome is Outcome.BLOCKED:
        unmet = _first_unmet(current.needs, by_id)
        if unmet is None or unmet.id in visited:
            break
        visited.add(unmet.id)
        current = unmet
    return current.id


def _first_unmet(needs: Iterable[str], by_id: Mapping[str, ClauseOutcome]) -> ClauseOutcome | None:
    met = (Outcome.PASSED, Outcome.NOT_APPLICABLE)
    return next(
        (by_id[need] for need in needs if need in by_id and by_id[need].outcome not in met), None
    )


def _told(denying: Iterable[ClauseOutcome], noun: str) -> str:
    """`1 MUST not met, 35 MUSTs blocked`: the first alone are to be mended, and a count of all
    blocked clauses is another."""
    kinds = Counter(_STANDING.get(one.outcome, "not met") for one in denying)
    counts = [(kinds[kind], kind) for kind in ("not met", *_STANDING.values()) if kind in kinds]
    return ", ".join(f"{_clauses(number, noun)} {kind}" for number, kind in counts)


def _clauses(number: int, kind: str = "clause") -> str:
    return f"{number} {kind}{'' if number == 1 else 's'}"
