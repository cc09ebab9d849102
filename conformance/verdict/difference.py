"""What changed between two certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conformance.verdict.certificate import plain
from conformance.verdict.outcomes import UNMET, Outcome
from conformance.verdict.verdict import Verdict

ABSENT = "absent"
"""The value of anything that only the other certificate has."""


@dataclass(frozen=True)
class Change:
    """Something that is not the same in both: a clause's outcome, a version, a digest."""

    what: str
    before: str
    after: str

    @property
    def worse(self) -> bool:
        """Whether a clause that was met is no longer met."""
        unmet = {outcome.value for outcome in UNMET}
        return self.before not in unmet and self.after in unmet


def changed_clauses(before: Verdict, after: Verdict) -> tuple[Change, ...]:
    """The clauses whose outcome differs, those that got worse first."""
    old = {outcome.id: outcome.outcome for outcome in before.outcomes}
    new = {outcome.id: outcome.outcome for outcome in after.outcomes}
    changes = _changes(old, new)
    return tuple(sorted(changes, key=lambda change: not change.worse))


def changed_conditions(before: Verdict, after: Verdict) -> tuple[Change, ...]:
    """Versions, declarations, sources, checkpoints and options that differ."""
    return _changes(_conditions(before), _conditions(after))


def _conditions(verdict: Verdict) -> dict[str, Any]:
    assessment = verdict.assessment
    tables: dict[str, Mapping[str, Any]] = {
        "environment": assessment.environment,
        "declaration": assessment.declarations,
        "source": assessment.sources,
        "checkpoint": assessment.hub,
    }
    options = {
        "result": verdict.result,
        "target": assessment.target,
        "backbone": assessment.backbone_id,
        "profiles": ", ".join(assessment.profiles),
        "weights": assessment.weights,
        "device": assessment.device,
        "seed": assessment.seed,
        "budget": assessment.budget,
        "conformance": verdict.tool_version,
    }
    return {
        **options,
        **{
            f"{kind} {name}": plain(value)
            for kind, table in tables.items()
            for name, value in table.items()
        },
    }


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys([*old, *new])
    return tuple(
        Change(name, _text(old.get(name, ABSENT)), _text(new.get(name, ABSENT)))
        for name in names
        if old.get(name, ABSENT) != new.get(name, ABSENT)
    )


def _text(value: Any) -> str:
    return value.value if isinstance(value, Outcome) else str(value)
