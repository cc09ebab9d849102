"""The drift as one table of three columns: what, before, after."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from conformance.drift.findings import Drift

_WIDTH = 79
_WHAT_COLUMNS = 33
_VALUE_COLUMNS = 22


def lines(found: Drift, before: str, after: str) -> Iterator[str]:
    """The table, under the labels of the two sides; what got worse comes first."""
    yield from _row("", before, after)
    # A run of chosen clauses is never certified, on either side.
    if found.after.only is None:
        yield from _row("result", found.before.result, found.after.result)
    for clause in found.clauses:
        name = f"{clause.id} (worse)" if clause.worse else clause.id
        yield from _row(name, clause.before, clause.after)
        if clause.why:
            yield from textwrap.wrap(
                clause.why, _WIDTH, initial_indent="    ", subsequent_indent="    "
            )
    for fact in found.facts:
        yield from _row(f"{fact.clause or ''} {fact.what}".strip(), fact.before, fact.after)
    for reading in (one for one in found.readings if one.counts):
        allowed = f" of {reading.bound:.3g}" if reading.bound else ""
        yield from _row(
            f"{reading.clause} {reading.quantity}{allowed}",
            _number(reading.before),
            _number(reading.after),
        )
    for condition in found.conditions:
        if condition.what != "result":
            yield from _row(condition.what, condition.before, condition.after)
    silent = sum(not one.counts for one in found.readings)
    if silent:
        yield from textwrap.wrap(
            f"{silent} other readings of gates moved by less than a tenth of their bounds, or were "
            f"taken on one side alone.",
            _WIDTH,
        )
    yield ""
    yield _conclusion(found)


def _conclusion(found: Drift) -> str:
    if not found.changed:
        return "Nothing changed but releases."
    worse = sum(one.worse for one in found.clauses)
    counted = {
        "clause": len(found.clauses),
        "fact": len(found.facts),
        "reading": sum(one.counts for one in found.readings),
    }
    told = ", ".join(f"{many} {name}{'s' * (many > 1)}" for name, many in counted.items() if many)
    return f"Changed: {told}; {worse or 'none'} of the clauses for the worse."


def _number(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    return value if isinstance(value, str) else f"{value:.3g}"


def _row(what: str, before: str, after: str) -> Iterator[str]:
    cells = [
        textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False) or [""]
        for text, width in zip(
            (what, before, after), (_WHAT_COLUMNS, _VALUE_COLUMNS, _VALUE_COLUMNS), strict=True
        )
    ]
    for number in range(max(map(len, cells))):
        parts = [column[number] if number < len(column) else "" for column in cells]
        yield (f"{parts[0]:<{_WHAT_COLUMNS}} {parts[1]:<{_VALUE_COLUMNS}} {parts[2]}".rstrip())
