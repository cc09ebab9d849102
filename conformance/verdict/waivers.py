"""Waivers: unmet clauses that somebody answers for, for a limited time.

A waiver is a `[[waiver]]` table with an `id`, a `reason`, the date it `expires` (it holds on that
day) and `by`, who answers for it. It turns a failed, blocked or broken (`error`) clause into a
*waived* one. It does not reach further: what the clause blocks stays blocked, and denies the
certificate, unless that is waived as well. A clause that did not run cannot be waived, since
nothing is known about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from conformance.catalogue import catalogue
from conformance.errors import CannotAssess
from conformance.toml import TOMLDecodeError, load_toml
from conformance.verdict.outcomes import ClauseOutcome, Outcome

WAIVABLE = (Outcome.FAILED, Outcome.BLOCKED, Outcome.ERROR)
"""The outcomes that a waiver can excuse."""

_FIELDS = ("id", "reason", "expires", "by")


class InvalidWaivers(CannotAssess):
    """The waivers file cannot be read as one."""


@dataclass(frozen=True)
class Waiver:
    id: str
    reason: str
    expires: date
    by: str


@dataclass(frozen=True)
class WaiverUse:
    """A waiver and what it did: `note` says why it had no effect, and is empty when it had one."""

    waiver: Waiver
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.waiver.id,
            "reason": self.waiver.reason,
            "expires": self.waiver.expires.isoformat(),
            "by": self.waiver.by,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> WaiverUse:
        waiver = Waiver(data["id"], data["reason"], date.fromisoformat(data["expires"]), data["by"])
        return cls(waiver, data["note"])


def read_waivers(path: Path) -> tuple[Waiver, ...]:
    """The waivers in a TOML file.

    Raises:
        InvalidWaivers: for a file that cannot be read, or an entry that is incomplete, repeated or
        of no known clause.
    """
    try:
        table = load_toml(path)
    except OSError as error:
        raise InvalidWaivers(
            f"the waivers `{path}` cannot be read: {error.strerror or error}"
        ) from error
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidWaivers(f"the waivers `{path}` are not TOML: {error}") from error
    unknown = sorted(set(table) - {"waiver"})
    if unknown:
        raise InvalidWaivers(
            f"`{path}` has an unknown key `{unknown[0]}`: waivers are written as [[waiver]] tables"
        )
    entries = table.get("waiver", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidWaivers(
            f"`waiver` in `{path}` should be a list of tables: write each waiver as [[waiver]]"
        )
    waivers = tuple(
        _waiver(entry, f"waiver {number} in `{path}`")
        for number, entry in enumerate(entries, start=1)
    )
    _refuse_repeats(waivers, path)
    return waivers


def apply_waivers(
    outcomes: Iterable[ClauseOutcome], waivers: Sequence[Waiver], today: date
) -> tuple[tuple[ClauseOutcome, ...], tuple[WaiverUse, ...]]:
    """The outcomes with waivers applied, and what became of each waiver."""
    final = {outcome.id: outcome for outcome in outcomes}
    uses = []
    for waiver in waivers:
        note = _why_without_effect(waiver, final.get(waiver.id), today)
        uses.append(WaiverUse(waiver, note))
        if not note:
            final[waiver.id] = _waived(final[waiver.id], waiver)
    return tuple(final.values()), tuple(uses)


def _why_without_effect(waiver: Waiver, outcome: ClauseOutcome | None, today: date) -> str:
    name = f"the waiver of {waiver.id}"
    if waiver.expires < today:
        return (
            f"{name} expired on {waiver.expires} and was not applied: mend the clause, or ask "
            f"{waiver.by}"
        )
    if outcome is None:
        return f"{name} is unused: the clause is not in these profiles"
    if outcome.outcome is Outcome.NOT_RUN:
        return f"{name} was not applied: the clause did not run, so there is nothing to excuse"
    if outcome.outcome not in WAIVABLE:
        return f"{name} is unused: the clause is {outcome.outcome}; remove the waiver"
    return ""


def _waived(outcome: ClauseOutcome, waiver: Waiver) -> ClauseOutcome:
    excuse = {
        "instead of": outcome.outcome.value,
        "reason": waiver.reason,
        "expires": waiver.expires.isoformat(),
        "by": waiver.by,
    }
    return replace(outcome, outcome=Outcome.WAIVED, evidence={**outcome.evidence, "waiver": excuse})


def _waiver(entry: Mapping[str, Any], where: str) -> Waiver:
    for name in _FIELDS:
        if name not in entry:
            raise InvalidWaivers(f"{where} has no `{name}`: a waiver needs {', '.join(_FIELDS)}")
    for name in entry:
        if name not in _FIELDS:
            raise InvalidWaivers(
                f"{where} has an unknown key `{name}`: a waiver has {', '.join(_FIELDS)}"
            )
    for name in ("id", "reason", "by"):
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise InvalidWaivers(
                f"`{name}` of {where} is {entry[name]!r}, but should be a text that is not empty"
            )
    if entry["id"] not in catalogue():
        raise InvalidWaivers(
            f"{where} waives `{entry['id']}`, which is not a clause; `conformance requirements` "
            f"lists them"
        )
    expires = entry["expires"]
    # A TOML date-time is a subclass of a date, and would not compare with today.
    if not isinstance(expires, date) or isinstance(expires, datetime):
        raise InvalidWaivers(
            f"`expires` of {where} is {expires!r}, but should be a date without quotes: expires = "
            f"2027-01-31"
        )
    return Waiver(entry["id"], entry["reason"].strip(), expires, entry["by"].strip())


def _refuse_repeats(waivers: Sequence[Waiver], path: Path) -> None:
    seen: set[str] = set()
    for waiver in waivers:
        if waiver.id in seen:
            raise InvalidWaivers(f"`{path}` waives {waiver.id} twice: keep one of the two")
        seen.add(waiver.id)
