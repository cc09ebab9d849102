"""Draws the verdict from what was observed.

A verdict is drawn from the clauses that the profiles expect, never from those that happened to run:
an outcome that did not arrive counts against the subject, and so does a run that judged nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from conformance.catalogue import MUST, Requirement, catalogue, expected_clauses
from conformance.verdict.outcomes import Assessment, ClauseOutcome, Outcome
from conformance.verdict.resources import configuration_of
from conformance.verdict.upstream import KnownDefect, apply_defects
from conformance.verdict.verdict import Verdict
from conformance.verdict.waivers import Waiver, apply_waivers
from conformance.version import __version__


def reach_verdict(
    assessment: Assessment,
    *,
    waivers: Sequence[Waiver] = (),
    defects: Sequence[KnownDefect] = (),
    only: Sequence[str] | None = None,
    files: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Verdict:
    """Draw the verdict on `assessment`.

    `only` are the clauses of a partial run. `files` maps the names of further files that shaped the
    run (the waivers, a configuration) to their SHA-256. `now` decides which waivers have expired;
    it is the present moment unless given.

    Raises:
        KeyError: for a profile that is not implemented; the argument is its name.
    """
    now = now or datetime.now(timezone.utc)
    outcomes = _complete(assessment, catalogue(), only)
    outcomes = apply_defects(outcomes, defects, assessment.environment)
    outcomes, uses = apply_waivers(outcomes, waivers, now.date())
    return Verdict(
        assessment=replace(assessment, outcomes=outcomes),
        only=None if only is None else tuple(only),
        waivers=uses,
        configuration=configuration_of(assessment, files or {}),
        issued_at=now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool_version=__version__,
    )


def _complete(
    assessment: Assessment, requirements: Mapping[str, Requirement], only: Sequence[str] | None
) -> tuple[ClauseOutcome, ...]:
    """Exactly one outcome for each expected clause, in the order of the profiles, then whatever was
    not expected."""
    arrived: dict[str, list[ClauseOutcome]] = {}
    for outcome in assessment.outcomes:
        arrived.setdefault(outcome.id, []).append(outcome)
    expected = expected_clauses(assessment.profiles)
    complete = [
        _as_catalogued(_the_one_outcome(clause, arrived.pop(clause, []), only), requirements)
        for clause in expected
    ]
    unexpected = [
        replace(
            outcomes[0],
            level=MUST,
            outcome=Outcome.ERROR,
            summary=f"{clause} was judged, but is not expected by profile "
            f"{', '.join(assessment.profiles)}: the suite and conformance/profiles.toml disagree",
        )
        for clause, outcomes in arrived.items()
    ]
    return (*complete, *unexpected)


def _the_one_outcome(
    clause: str, arrived: Sequence[ClauseOutcome], only: Sequence[str] | None
) -> ClauseOutcome:
    if len(arrived) == 1:
        return arrived[0]
    if arrived:
        outcome, summary = (
            Outcome.ERROR,
            f"{len(arrived)} outcomes arrived for {clause}, but exactly one should",
        )
    elif only is not None and clause not in only:
        outcome, summary = Outcome.NOT_RUN, "not requested"
    else:
        outcome, summary = Outcome.NOT_RUN, "no outcome arrived"
    return ClauseOutcome(id=clause, level=MUST, profile="", outcome=outcome, summary=summary)


def _as_catalogued(
    outcome: ClauseOutcome, requirements: Mapping[str, Requirement]
) -> ClauseOutcome:
    """The outcome with the catalogue's level: the process that judged ran the subject's code, so it
    is not trusted to say what is a MUST."""
    known = requirements.get(outcome.id)
    if known is None:
        return replace(outcome, level=MUST)
    return replace(outcome, level=known.level, profile=known.profile, needs=known.needs)
