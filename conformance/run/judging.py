"""Runs the clauses on a subject, in order of need, with one outcome each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conformance.assertions import (
    BLOCKS_USERS_OF,
    Blocked,
    ClauseFailure,
    NotApplicable,
    NotRun,
    listening,
)
from conformance.catalogue import Requirement, in_order_of_need
from conformance.places import PACKAGE, is_ours
from conformance.run.blame import seen_on_control
from conformance.subject.contract import OPTIONAL_MEMBERS
from conformance.subject.process_state import restored
from conformance.subject.raised import raised_as_evidence
from conformance.subject.subject import Subject
from conformance.suite import collection
from conformance.verdict.outcomes import UNMET, ClauseOutcome, Outcome


def judge(
    subject: Subject,
    clause_ids: Sequence[str],
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[ClauseOutcome | Requirement]:
    """Judge the clauses; yields each clause's Requirement as it begins and its ClauseOutcome when
    it ends. `on_progress` is called in between, whenever a clause has got on."""
    requirements = collection.requirements_of_suite()
    outcomes: dict[str, ClauseOutcome] = {}
    for clause_id in in_order_of_need(clause_ids, requirements):
        clause = requirements[clause_id]
        yield clause
        outcomes[clause_id] = _judge_clause(subject, clause, outcomes, on_progress)
        yield outcomes[clause_id]


def _judge_clause(
    subject: Subject,
    clause: Requirement,
    earlier: Mapping[str, ClauseOutcome],
    on_progress: Callable[[], None],
) -> ClauseOutcome:
    started = time.perf_counter()
    unmet = next(
        (need for need in clause.needs if need in earlier and _stands_in_the_way(earlier[need])),
        None,
    )
    if unmet is not None:
        return _blocked(clause, unmet, earlier)
    if (broken := _breaks_what_is_used(clause, earlier)) is not None:
        return _blocked(clause, broken, earlier)
    missing = (
        next((member for member in clause.uses if subject.lacks(member)), None)
        if clause.uses
        else None
    )
    if missing is not None:
        if missing in (*OPTIONAL_MEMBERS, *subject.optional_absent):
            reason = f"the subject has no `{missing}`, which is optional or declared absent"
            return _outcome(
                clause, Outcome.NOT_APPLICABLE, reason, seconds=time.perf_counter() - started
            )
        return _blocked(clause, "CON-03", earlier, f"the subject has no `{missing}`")
    try:
        # What a use of the subject leaves behind in the process must not hide from CON-11, nor
        # change what later clauses compute.
        with listening(on_progress) as told, restored():
            found = _run_tests(subject, clause)
    except Blocked as block:
        blocked = _blocked(clause, block.cause, earlier)
        if block.__cause__ is None:
            return blocked
        # A run of chosen clauses may not judge the cause, which would tell it.
        return replace(blocked, evidence=raised_as_evidence(block.__cause__, subject.factory))
    if found.outcome is Outcome.FAILED and "code" not in found.evidence:
        with suppress(Exception):  # a subject may be built so that none of it can be looked at
            told["code"] = subject.code_of(clause.uses)
    return _outcome(
        clause,
        found.outcome,
        found.summary,
        evidence={**found.evidence, **told},
        counterexample=found.counterexample,
        seconds=time.perf_counter() - started,
    )


def _stands_in_the_way(need: ClauseOutcome) -> bool:
    """Whether clauses that need this one cannot be judged. A fault of the library itself does not
    block them, nor one that leaves something to judge them on."""
    return need.outcome in UNMET and not (
        need.evidence.get("library") or need.evidence.get("partial")
    )


def _breaks_what_is_used(clause: Requirement, earlier: Mapping[str, ClauseOutcome]) -> str | None:
    """The clause that found a member unusable which this one uses, if there is one."""
    return next(
        (
            outcome.id
            for outcome in earlier.values()
            if _stands_in_the_way(outcome) and outcome.evidence.get(BLOCKS_USERS_OF) in clause.uses
        ),
        None,
    )


@dataclass(frozen=True)
class _Found:
    """What the tests of one clause found."""

    outcome: Outcome
    summary: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    counterexample: Mapping[str, Any] | None = None


def _run_tests(subject: Subject, clause: Requirement) -> _Found:
    tests, reasons = collection.clause_tests()[clause.id], []
    for test in tests:
        try:
            test(subject)
        except NotApplicable as reason:
            reasons.append(str(reason))
        except NotRun as lack:
            return _Found(Outcome.NOT_RUN, str(lack))
        except (KeyboardInterrupt, Blocked):
            raise
        except BaseException as error:
            found = _judged_exception(error, subject)
            if found.outcome is Outcome.FAILED:
                same = seen_on_control(subject, clause, test, error)
                if same is not None:
                    evidence = {**found.evidence, "control": same}
                    return replace(found, outcome=Outcome.UPSTREAM, evidence=evidence)
            return found
    if len(reasons) == len(tests):
        return _Found(Outcome.NOT_APPLICABLE, reasons[0])
    return _Found(Outcome.PASSED)


def _judged_exception(error: BaseException, subject: Subject) -> _Found:
    counterexample = getattr(error, "counterexample", None)
    if type(error).__name__ == "OutOfMemoryError":
        # Of the device: what fits depends on the machine, and is no property of the subject.
        return _Found(Outcome.NOT_RUN, f"the device's memory does not suffice: {error}")
    if isinstance(error, ClauseFailure):
        evidence = dict(error.evidence)
        if error.__cause__ is not None and not isinstance(error.__cause__, ClauseFailure):
            raised = raised_as_evidence(error.__cause__, subject.factory)
            if not raised["code"] and _is_raised_in_suite(error.__cause__):
                # The library's compiled code refused what our line handed to it: not the place.
                raised = {name: raised[name] for name in ("exception", "traceback")}
            evidence.update(raised)
        return _Found(Outcome.FAILED, str(error), evidence, counterexample)
    told = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if _is_ours(error, frames) and not isinstance(error, SystemExit):
        place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}"
        broken = {
            "exception": type(error).__name__,
            "where": place,
            "traceback": traceback.format_exc(limit=-8),
        }
        return _Found(
            Outcome.ERROR, f"the check itself broke, {told} at {place}", broken, counterexample
        )
    evidence = raised_as_evidence(error, subject.factory)
    did = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {told}"
    return _Found(
        Outcome.FAILED, f"the backbone {did} ({evidence['where']})", evidence, counterexample
    )


def _is_raised_in_suite(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE / "suite")


def _is_ours(error: BaseException, frames: traceback.StackSummary) -> bool:
    """Whether the suite broke rather than the subject: the exception was raised in our code, or by
    Hypothesis."""
    if type(error).__module__.partition(".")[0] == "hypothesis":
        return True
    return bool(frames) and is_ours(frames[-1].filename)


def _blocked(
    clause: Requirement, cause: str, earlier: Mapping[str, ClauseOutcome], reason: str | None = None
) -> ClauseOutcome:
    root = cause
    while root in earlier and earlier[root].root_cause is not None:
        root = earlier[root].root_cause  # type: ignore[assignment]
    return _outcome(
        clause, Outcome.BLOCKED, reason or f"cannot be judged until {root} holds", root_cause=root
    )


def _outcome(clause: Requirement, outcome: Outcome, summary: str, **rest: Any) -> ClauseOutcome:
    return ClauseOutcome(
        id=clause.id,
        level=clause.level,
        profile=clause.profile,
        needs=clause.needs,
        outcome=outcome,
        summary=summary,
        **rest,
    )
