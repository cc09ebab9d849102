"""What differs between two certificates of one subject, sorted by what it means.

Clauses and facts count. A gate's reading counts if it moved by a tenth of what is allowed: the last
bits of a rounding error are for each release to choose. Conditions (releases, mostly) were meant
to differ, and count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from conformance.errors import CannotAssess
from conformance.report.narrative import headline, one_line
from conformance.verdict.difference import (
    ABSENT,
    Change,
    changed_clauses,
    changed_conditions,
)
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from conformance.verdict.resources import TOOL
from conformance.verdict.verdict import Verdict

MOVED = 0.1
"""The share of a gate's bound by which a reading must move to count as a change."""
_MEASURED = "measured"
_CHANGEABLE = ("environment ", "conformance", "result")
"""Conditions that differ because the releases do, or because clauses do."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
_FOLDERS = re.compile(r"(?:/[^\s/:()'\"`]+)+/(?=\w)")
"""The folders of an absolute path: two environments lie in two places."""
_SUMMARY_CHARACTERS = 120


@dataclass(frozen=True)
class ClauseChange:
    """A clause with another outcome, and what is said of it on the side where it is not passed."""

    id: str
    before: str
    after: str
    worse: bool
    why: str


@dataclass(frozen=True)
class Fact:
    """An id, a count or a digest that differs: `special ids: pad` of PAD-01, say."""

    clause: str | None
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Reading:
    """A gate's worst reading on both sides, and its bound."""

    clause: str
    quantity: str
    before: float | str | None
    after: float | str | None
    bound: float | None
    counts: bool


@dataclass(frozen=True)
class Drift:
    """What a step from one environment to the other changed."""

    before: Verdict
    after: Verdict
    clauses: tuple[ClauseChange, ...]
    facts: tuple[Fact, ...]
    readings: tuple[Reading, ...]
    conditions: tuple[Fact, ...]

    @property
    def changed(self) -> bool:
        return bool(self.clauses or self.facts or any(one.counts for one in self.readings))

    def as_json(self) -> dict[str, Any]:
        """The document that `conformance/schemas/drift.schema.json` describes, without the names of
        the sides."""
        return {
            "changed": self.changed,
            "target": self.after.assessment.target,
            "backboneId": self.after.assessment.backbone_id,
            "profiles": list(self.after.assessment.profiles),
            "only": None if self.after.only is None else list(self.after.only),
            "results": {"from": self.before.result, "to": self.after.result},
            "clauses": [asdict(one) for one in self.clauses],
            "facts": [asdict(one) for one in self.facts],
            "readings": [asdict(one) for one in self.readings],
            "conditions": [asdict(one) for one in self.conditions],
        }


def drift(before: Verdict, after: Verdict) -> Drift:
    """Compare two verdicts on one subject.

    Raises:
        CannotAssess: if both runs were cut short: what neither judged would seem to be unchanged.
    """
    breakdowns = [side.assessment.breakdown for side in (before, after)]
    if None not in breakdowns:
        raise CannotAssess(f"both runs were cut short, the second {breakdowns[1]}")
    old = {outcome.id: outcome for outcome in before.outcomes}
    new = {outcome.id: outcome for outcome in after.outcomes}
    both = [(old[clause], new[clause]) for clause in old if clause in new]
    conditions = changed_conditions(before, after)
    meant = [one for one in conditions if one.what.startswith(_CHANGEABLE)]
    return Drift(
        before,
        after,
        tuple(_clause_change(one, old, new) for one in changed_clauses(before, after)),
        (
            *(fact for pair in both for fact in _facts(*pair)),
            *(
                Fact(None, one.what, one.before, one.after)
                for one in conditions
                if one not in meant
            ),
        ),
        tuple(reading for pair in both for reading in _readings(*pair)),
        tuple(_conditions(meant, before, after)),
    )


def _clause_change(
    change: Change, old: Mapping[str, ClauseOutcome], new: Mapping[str, ClauseOutcome]
) -> ClauseChange:
    sides = [side[change.what] for side in (new, old) if change.what in side]
    why = next(
        (_placeless(headline(one)) for one in sides if one.outcome is not Outcome.PASSED), ""
    )
    return ClauseChange(change.what, change.before, change.after, change.worse, why)


def _placeless(text: str) -> str:
    return _FOLDERS.sub("", one_line(text))


def _facts(old: ClauseOutcome, new: ClauseOutcome) -> Iterator[Fact]:
    """Facts in the evidence of a clause that passed in both; of one that did not, whether it says
    something else, numbers aside."""
    if old.outcome is not new.outcome:
        return
    if old.outcome is not Outcome.PASSED:
        told = [_placeless(one.summary) for one in (old, new)]
        if _NUMBER.sub("#", told[0]) != _NUMBER.sub("#", told[1]):
            yield Fact(old.id, "summary", *(text[:_SUMMARY_CHARACTERS] for text in told))
        return
    before, after = (dict(_leaves("", one.evidence)) for one in (old, new))
    for name in dict.fromkeys([*before, *after]):
        values = before.get(name, ABSENT), after.get(name, ABSENT)
        if values[0] != values[1]:
            yield Fact(old.id, name, *map(str, values))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Facts by the path to them. Numbers with a fraction are measurements, and no facts."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if name or key != _MEASURED:
                yield from _leaves(f"{name}: {key}" if name else str(key), item)
    elif isinstance(value, list) and any(isinstance(item, (dict, list, float)) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(f"{name} {number}", item)
    elif not isinstance(value, float):
        yield name, value


def _readings(old: ClauseOutcome, new: ClauseOutcome) -> Iterator[Reading]:
    before, after = (_measured(one) for one in (old, new))
    for quantity in dict.fromkeys([*before, *after]):
        one, other = (side.get(quantity, {}) for side in (before, after))
        values = one.get("worst"), other.get("worst")
        if values[0] == values[1]:
            continue
        bound = other.get("bound", one.get("bound"))
        numbers = [value for value in values if isinstance(value, (int, float))]
        is_number = isinstance(bound, (int, float)) and bound > 0
        if len(numbers) == 2 and is_number:
            counts = abs(numbers[0] - numbers[1]) > MOVED * bound
        else:
            # Not measured on one side is what its release does not offer; NaN is a change.
            counts = None not in values
        yield Reading(old.id, str(quantity), *values, bound if is_number else None, counts)


def _measured(outcome: ClauseOutcome) -> dict[str, Mapping[str, Any]]:
    found = outcome.evidence.get(_MEASURED)
    if not isinstance(found, Mapping):
        return {}
    return {str(name): one for name, one in found.items() if isinstance(one, Mapping)}


def _conditions(meant: list[Change], before: Verdict, after: Verdict) -> Iterator[Fact]:
    for change in meant:
        if change.what != "environment packages":
            yield Fact(None, change.what, change.before, change.after)
    old, new = (side.assessment.environment.get("packages", {}) for side in (before, after))
    for name in dict.fromkeys([*old, *new]):
        # This project is installed in one and on the path of both: its version is `conformance`.
        if name != TOOL and old.get(name) != new.get(name):
            yield Fact(None, name, str(old.get(name, ABSENT)), str(new.get(name, ABSENT)))
