"""What a certificate has measured, as figures for a page: the geometry of drawings, and the cells
of tables. `page/drawings.jinja` draws them.

A figure is drawn of what the evidence holds and of nothing else; evidence of another shape gives
none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from conformance.places import fixtures_directory
from conformance.report.narrative import number
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from conformance.verdict.verdict import Verdict

_GROWTH_WIDTH, _GROWTH_HEIGHT = 380, 130
"""The plot of an error's growth, without its margins."""
_TRACK = 100
"""From zero to the bound on the track of a reading."""
_BEYOND = 1.22
"""Where readings beyond their bound stand, as a share of it."""
_MARGIN, _LEAST = 8, 24
"""Tokens of a receptive field that are drawn beyond the window, and in all at least."""
_WIDEST = 64
"""Tokens of a receptive field that are drawn at most."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Growth:
    """The error after each layer of subject and reference, and what the bound allows over the
    reference; all in units of the drawing, whose top is `highest`."""

    subject: Sequence[Point]
    reference: Sequence[Point]
    allowed: Sequence[Point]
    highest: float
    within: bool
    width: int = _GROWTH_WIDTH
    height: int = _GROWTH_HEIGHT


def error_growth(outcome: ClauseOutcome) -> Growth | None:
    """The growth of half-precision errors from layer to layer; None if the evidence holds none."""
    rows = _rows(outcome.evidence.get("error growth"))
    ours, theirs = ([_number(row.get(key)) for row in rows] for key in ("subject", "reference"))
    subject, reference = ([value for value in line if value is not None] for line in (ours, theirs))
    if len(rows) < 2 or not len(subject) == len(reference) == len(rows):
        return None
    measured = _mapping(_mapping(outcome.evidence.get("measured")).get("rounding ratio"))
    bound = _number(measured.get("bound"))
    allowed = [value * bound for value in reference] if bound else []
    highest = max(*subject, *reference, *allowed) or 1.0

    def points(line: Sequence[float]) -> list[Point]:
        across = _GROWTH_WIDTH / (len(rows) - 1)
        return [
            (round(layer * across, 1), round(_GROWTH_HEIGHT * (1 - value / highest), 1))
            for layer, value in enumerate(line)
        ]

    return Growth(
        points(subject), points(reference), points(allowed), highest,
        within=all(error <= most for error, most in zip(subject, allowed, strict=False)),
    )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One quantity against its bound. `place` is where it stands on a track on which the bound is
    at `bound_place`, `usual` between which places correct models read, where that is known."""

    clause: str
    quantity: str
    worst: str
    bound: str
    met: bool
    place: float
    usual: tuple[float, float] | None
    bound_place: int = _TRACK


def readings(outcome: ClauseOutcome) -> list[Reading]:
    """Everything that a clause measured against a bound, each beside what correct models read where
    the calibration recorded that."""
    found = []
    for quantity, told in _mapping(outcome.evidence.get("measured")).items():
        worst, bound = (_number(_mapping(told).get(key)) for key in ("worst", "bound"))
        if not bound:
            continue
        share = math.inf if worst is None else worst / bound
        found.append(
            Reading(
                outcome.id,
                str(quantity),
                str(told.get("worst")) if worst is None else number(worst),
                number(bound),
                met=share <= 1,
                place=round(_TRACK * min(share, _BEYOND), 1),
                usual=_usual(told, str(quantity), bound),
            )
        )
    return found


def _usual(told: Mapping[str, Any], gate: str, bound: float) -> tuple[float, float] | None:
    known = _calibration(str(told.get("calibrated on")), told.get("calibration")).get(gate)
    if known is None:
        return None
    least = max(known["mean"] - 3 * known["standard_deviation"], 0.0)
    return round(_TRACK * least / bound, 1), round(_TRACK * known["worst"] / bound, 1)


@cache
def _calibration(device: str, number: Any) -> Mapping[str, Mapping[str, Any]]:
    """What correct models read at each gate, of the calibration that a measurement names."""
    known = (fixtures_directory() / "calibration").glob(f"{device}-*.json")
    for path in sorted(known) if device.isalnum() else ():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("calibration") == number:
            gates: Mapping[str, Mapping[str, Any]] = found["gates"]
            return gates
    return {}


@dataclass(frozen=True)
class SeenByLayer:
    """Whether the last token of a layer sees the one of each age, oldest first; `window` tokens
    should be seen, itself among them."""

    seen: Sequence[bool]
    window: int

    @property
    def as_expected(self) -> bool:
        return list(self.seen) == [age < self.window for age in range(len(self.seen) - 1, -1, -1)]


def receptive_field(outcome: ClauseOutcome) -> list[SeenByLayer]:
    """The tokens that the last one sees, layer by layer; empty if the evidence does not say."""
    found = _mapping(outcome.evidence.get("receptive field"))
    rows, tokens = _rows(found.get("layers")), _whole(found.get("tokens"))
    windows = [window for row in rows if (window := _whole(row.get("expected")))]
    if not tokens or not windows or len(windows) != len(rows):
        return []
    shown = min(tokens, max(max(windows) + _MARGIN, _LEAST), _WIDEST)
    return [
        SeenByLayer(
            [
                any(first <= age <= last for first, last in _runs(row.get("sees")))
                for age in range(shown - 1, -1, -1)
            ],
            min(window, shown),
        )
        for row, window in zip(rows, windows, strict=True)
    ]


@dataclass
class Unit:
    """A unit of sharding, or `count` neighbours alike, with the units inside it."""

    path: str
    kind: str
    parameters: int
    count: int = 1
    inside: list[Unit] = field(default_factory=list)


def wrap_units(outcome: ClauseOutcome) -> list[Unit]:
    """The units that sharding makes, as a tree; neighbours of one class and size are told once."""
    roots: list[Unit] = []
    around: list[Unit] = []
    for row in _rows(outcome.evidence.get("wrap units")):
        parameters = _whole(row.get("parameters"))
        if parameters is None:
            return []
        unit = Unit(str(row.get("unit")), str(row.get("class")), parameters)
        while around and not _encloses(around[-1].path, unit.path):
            around.pop()
        (around[-1].inside if around else roots).append(unit)
        around.append(unit)
    return _counted(roots)


def _counted(units: Sequence[Unit]) -> list[Unit]:
    told: list[Unit] = []
    for unit in units:
        unit.inside = _counted(unit.inside)
        if told and _shape(told[-1]) == _shape(unit):
            told[-1].count += 1
        else:
            told.append(unit)
    return told


def _shape(unit: Unit) -> tuple[Any, ...]:
    """What neighbours that are alike have in common: all but their paths, and how many they are."""
    inside = [(_shape(inner), inner.count) for inner in unit.inside]
    return unit.kind, unit.parameters, inside


@dataclass(frozen=True)
class States:
    """In which states clauses compared: a row a factor, a column a clause; a cell holds how many of
    the factor's values were compared, or, where the clause fails, its plainest failing state."""

    clauses: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]


def states(verdict: Verdict) -> States | None:
    """The grid of states and clauses; None if no clause compared in several."""
    told = [outcome for outcome in verdict.asked if {"states", "state"} & outcome.evidence.keys()]
    tried = [_mapping(outcome.evidence.get("states")) for outcome in told]
    broken = [_mapping(outcome.evidence.get("state")) for outcome in told]
    factors = dict.fromkeys(name for mapping in (*tried, *broken) for name in mapping)
    if not factors:
        return None
    met = [outcome.outcome is Outcome.PASSED for outcome in told]
    cells = zip(tried, broken, met, strict=True)
    columns = [
        [_cell(factor, tries, breaks, passed) for factor in factors]
        for tries, breaks, passed in cells
    ]
    rows = tuple(zip(map(str, factors), zip(*columns, strict=True), strict=True))
    return States(tuple(outcome.id for outcome in told), rows)


def _cell(
    factor: str, tries: Mapping[str, Any], breaks: Mapping[str, Any], passed: bool
) -> tuple[str, bool]:
    """What one clause says of one factor, and whether it names the value that the clause fails
    at."""
    if factor in breaks:
        return str(breaks[factor]), True
    if passed:
        return str(sum(map(bool, _mapping(tries.get(factor)).values())) or ""), False
    # It stops where it fails: what it compared before says little. What is not named is plain.
    return ("plain" if breaks else ""), False


@dataclass(frozen=True)
class Figures:
    """The figures of one clause; each is empty or None if its evidence is not there."""

    growth: Growth | None
    field: Sequence[SeenByLayer]
    units: Sequence[Unit]

    def __bool__(self) -> bool:
        return bool(self.growth or self.field or self.units)


def figures_of(outcome: ClauseOutcome) -> Figures:
    """Everything that is drawn of one clause."""
    return Figures(error_growth(outcome), receptive_field(outcome), wrap_units(outcome))


def _rows(found: Any) -> list[Mapping[str, Any]]:
    rows = found if isinstance(found, list) else []
    return rows if all(isinstance(row, Mapping) for row in rows) else []


def _runs(found: Any) -> Iterator[tuple[int, int]]:
    for run in found if isinstance(found, list) else ():
        if isinstance(run, list) and len(run) == 2 and None not in map(_whole, run):
            yield run[0], run[1]


def _encloses(path: str, other: str) -> bool:
    return path != other and (not path or other.startswith(f"{path}."))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None
