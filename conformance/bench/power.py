"""How often does a comparison cry wolf, and how large a slow-down does it find? Measured, on the machine at hand."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from conformance.bench.comparison import Finding, Pair, called_slower, compare, pairs_of, tested
from conformance.bench.request import BenchRequest
from conformance.bench.results import Recording, read_document, why_not_comparable
from conformance.bench.running import Announce, Pairs, Side, record, record_pairs, recordings_of
from conformance.errors import CannotAssess
from conformance.rates import rate_bounds

#: Shares of a benchmark's time that are added to it; nothing first, which is the question of false alarms.
SLOWDOWNS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
#: What comparisons are confirmed with, end to end: what is to be found nearly always, and most of the time.
CONFIRMED = (0.05, 0.03)
#: Of the smallest peak: ten times what counts as more memory.
MEMORY_SHARE = 0.01
DRAWS = 1000
#: A slow-down so large that a few pairs tell how many units of extra work it takes.
_CALIBRATING = 0.5
_CALIBRATING_PAIRS = 3
_MEMORY = "more-memory"
_CONFIRMATION = "confirmation"
#: By slow-down, by what was measured together: the pairs of each benchmark.
Recorded = dict[float, list[Mapping[str, list[Pair]]]]


@dataclass(frozen=True)
class Rate:
    """How many of ``draws`` comparisons of ``pairs`` pairs called a benchmark slower that had been slowed by ``slowdown``
    (``measured``: as the ``recorded`` pairs show it), drawn from ``together`` groups of pairs that were measured together; bounds
    are Clopper and Pearson's, one-sided, 95 %, and those of the drawing alone."""

    benchmark: str
    slowdown: float
    measured: float
    deviation: float
    recorded: int
    pairs: int
    draws: int
    together: int
    found: float
    at_least: float
    at_most: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Calibration:
    """How many units of extra work are as long as a round of each benchmark, and the least that any of them allocates."""

    units: Mapping[str, float]
    peak_bytes: int


@dataclass(frozen=True)
class Confirmation:
    """One comparison end to end: what head was slowed by, the verdict, which benchmarks it called slower, its length."""

    slowdown: float
    pairs: int
    result: str
    slower: tuple[str, ...]
    minutes: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Experiment:
    """Pairs of the installed code with itself, head's rounds made longer on purpose. All that is measured lies in ``out``, for
    :func:`read_recording`, :func:`confirmations` and :func:`memory_found`, as soon as it is."""

    request: BenchRequest
    out: Path
    processes: str
    timeout: float
    announce: Announce

    def calibrate(self) -> Calibration:
        """Time the benchmarks and a unit of extra work; then, in turns, the benchmarks with and without so much of it that
        the difference says how long a unit is: in turns alone are two times told apart that closely.

        Raises:
            CannotAssess: if nothing could be measured.
        """
        place = self.out / "calibration"
        run = record(self.request, 1, place, timeout=self.timeout, announce=self.announce).runs[0]
        unit = run.ceilings.get("seconds_per_unit")
        if not unit or not run.benchmarks:
            raise CannotAssess(
                f"nothing could be measured: {'; '.join(run.unmeasured.values()) or 'no benchmark'}"
            )
        peak = min(one.peak_memory or 0 for one in run.benchmarks.values())
        guess = Calibration({name: one.seconds / unit for name, one in run.benchmarks.items()}, peak)
        slower = self._slowed(guess, _CALIBRATING)
        base, head = self._pairs_of("calibrating, pair", slower, _CALIBRATING_PAIRS, place)
        taken = {
            name: math.expm1(
                statistics.fmean([pair.logarithm for pair in pairs_of(base, head, name)] or [0.0])
            )
            for name in slower.injected
        }
        if unmeasured := [name for name, share in taken.items() if share < _CALIBRATING / 10]:
            raise CannotAssess(
                f"extra work of half a round's length does not show in {', '.join(unmeasured)}: the machine is too busy, or a "
                "benchmark failed (bench run tells why)"
            )
        return replace(guess, units={name: units / taken[name] for name, units in slower.injected.items()})

    def record(self, calibration: Calibration, recorded: int) -> None:
        """``recorded`` pairs for each of :data:`SLOWDOWNS`, in turn: none of them has the quiet hour for itself."""
        own = Side("installed", None)
        with Pairs(own, own, processes=self.processes, timeout=self.timeout) as measuring:
            for number in range(recorded):
                for share in SLOWDOWNS:
                    self.announce(f"slowed by {100 * share:g} %, pair", number + 1, recorded)
                    slower = self._slowed(calibration, share)
                    measuring.measure(self.request, slower, number, self.out / _folder(share))

    def inject_memory(self, calibration: Calibration) -> None:
        """Let head hold one per cent more than the smallest peak."""
        hungrier = replace(self.request, injected_bytes=max(1, round(MEMORY_SHARE * calibration.peak_bytes)))
        self._pairs_of("more memory, pair", hungrier, 1, self.out / _MEMORY)

    def confirm(self, calibration: Calibration, comparisons: int, pairs: int) -> None:
        """Comparisons end to end, every other one of them without a slow-down, the others with one of :data:`CONFIRMED`."""
        kinds = [kind for share in CONFIRMED for kind in (0.0, share)]
        for number, share in zip(range(comparisons), cycle(kinds), strict=False):
            self._pairs_of(
                f"comparison {number + 1} of {comparisons}, slowed by {100 * share:g} %, pair",
                self._slowed(calibration, share),
                pairs,
                self.out / _CONFIRMATION / f"{number + 1:03d}" / _folder(share),
            )

    def _pairs_of(
        self, what: str, head_request: BenchRequest, pairs: int, place: Path
    ) -> tuple[Recording, Recording]:
        own = Side("installed", None)
        return record_pairs(
            self.request, own, own, pairs, place, head_request=head_request,
            processes=self.processes, timeout=self.timeout, what=what, announce=self.announce,
        )  # fmt: skip

    def _slowed(self, calibration: Calibration, share: float) -> BenchRequest:
        units = {name: _units(share * per_round) for name, per_round in calibration.units.items()}
        return replace(self.request, injected=units)


def read_recording(*places: Path) -> Recorded:
    """All pairs that an :class:`Experiment` stored in one of ``places``: those recorded in turn, and those of each confirming
    comparison.

    Raises:
        CannotAssess: where one holds no such recording, or they were not made alike.
    """
    found: Recorded = {}
    first: Recording | None = None
    for share, together in ((share, both) for place in places for share, both in _stored(place)):
        base, head = together
        first = first or base
        refusal = why_not_comparable(first, base)
        if refusal:
            raise CannotAssess(f"recordings cannot be read together: {refusal}")
        values = {name: pairs_of(base, head, name) for name in base.names}
        # What could not be measured (an attention that is not there) has no rate, and keeps none from the others.
        found.setdefault(share, []).append({name: own for name, own in values.items() if own})
    return {share: found[share] for share in SLOWDOWNS if share in found}


def environment_of(place: Path) -> Mapping[str, Any]:
    """What the recording in ``place`` was made on."""
    _, (base, _) = next(_stored(place))
    return base.runs[0].environment


def _stored(place: Path) -> Iterator[tuple[float, tuple[Recording, Recording]]]:
    """What was measured together in ``place``, with the slow-down."""
    runs, found = _runs(place), False
    for share in SLOWDOWNS:
        for folder in (runs / _folder(share), *sorted((runs / _CONFIRMATION).glob(f"*/{_folder(share)}"))):
            if pairs := _stored_pairs(folder):
                found = True
                yield share, _recordings(share, pairs)
    if not found:
        what = "holds no pairs of runs" if place.is_dir() else "is no folder"
        raise CannotAssess(f"{place} {what}: `conformance bench power --out DIR` records them in DIR")


def confirmations(place: Path) -> Iterator[Confirmation]:
    """The verdict of each comparison that an :class:`Experiment` ran end to end, from what it stored in ``place``."""
    found = [
        (folder, share)
        for share in SLOWDOWNS
        for folder in (_runs(place) / _CONFIRMATION).glob(f"*/{_folder(share)}")
    ]
    for folder, share in sorted(found):
        pairs = _stored_pairs(folder)
        if len(pairs) < 2:
            continue  # interrupted before there was anything to judge
        base, head = _recordings(share, pairs)
        verdict = compare(base, head, paired=True)
        slower = tuple(one.name for one in verdict.benchmarks if one.finding is Finding.SLOWER)
        ended = [datetime.fromisoformat(run.recorded) for run in head.runs]
        # The time of the first pair is not among those between the ends.
        minutes = (ended[-1] - ended[0]).total_seconds() / 60 * len(pairs) / (len(pairs) - 1)
        yield Confirmation(share, len(pairs), verdict.result, slower, round(minutes, 2))


def memory_found(place: Path) -> dict[str, int] | None:
    """How many benchmarks a comparison found to need more memory, of how many there are, and how much more they held."""
    pairs = _stored_pairs(_runs(place) / _MEMORY)
    if not pairs:
        return None
    hoarded = pairs[0]["head"][0]["conformance"]["request"]["injected_bytes"]
    found = compare(*_recordings(0.0, pairs), paired=True).benchmarks
    hungrier = sum(one.finding is Finding.HUNGRIER for one in found)
    return {"injectedBytes": hoarded, "found": hungrier, "of": len(found)}


def _runs(place: Path) -> Path:
    return place / "runs" if (place / "runs").is_dir() else place


def _stored_pairs(folder: Path) -> list[dict[str, tuple[Any, str]]]:
    """The pairs of which both runs were stored: an interrupted one left only one of them, or none."""
    return [
        {
            side: (read_document(path), str(path))
            for side, path in (("base", folder / "base" / place.name), ("head", place))
        }
        for place in sorted((folder / "head").glob("*.json"))
        if (folder / "base" / place.name).is_file()
    ]


def _recordings(share: float, pairs: list[dict[str, tuple[Any, str]]]) -> tuple[Recording, Recording]:
    return recordings_of("installed", f"slowed by {100 * share:g} %", pairs)


def rates(recorded: Recorded, pairs: int, *, draws: int = DRAWS, seed: int = 0) -> Iterator[Rate]:
    """Draw comparisons of ``pairs`` recorded pairs, each kind of slow-down for itself, and count what they find.

    Without a slow-down, a comparison that calls any benchmark slower counts as one false alarm, under the name ``any``.

    A comparison is drawn, with replacement, from the pairs that were measured together: what they have in common belongs to a
    comparison's error, and would average out over pairs of many. What was measured together is fewer pairs than a comparison
    takes only where it was interrupted, and is left out. Drawn comparisons share pairs: the bounds are those of the drawing,
    and how far the recording itself strays, fresh comparisons tell.

    Raises:
        CannotAssess: if fewer pairs were recorded than a comparison takes.
    """
    source = random.Random(seed)
    for share, every in recorded.items():
        together = [one for one in every if one and min(map(len, one.values())) >= pairs]
        if not together:
            most = max((min(map(len, one.values()), default=0) for one in every), default=0)
            raise CannotAssess(
                f"{most} pairs were recorded, and a comparison takes {pairs}: record more (--recorded)"
            )
        names = [name for name in together[0] if all(name in one for one in together)]
        values = {name: [pair.logarithm for one in together for pair in one[name]] for name in names}
        found = dict.fromkeys([*values, "any"], 0)
        for _ in range(draws):
            own = source.choice(together)
            chosen = source.choices(range(min(map(len, own.values()))), k=pairs)
            slower = called_slower({name: tested([own[name][pair] for pair in chosen]) for name in names})
            for name in slower:
                found[name] += 1
            found["any"] += bool(slower)
        for name in values if share else ["any"]:
            measured = values.get(name) or [value for every in values.values() for value in every]
            lower, upper = rate_bounds(found[name], draws)
            yield Rate(
                name, share, math.expm1(statistics.fmean(measured)), statistics.stdev(measured),
                len(measured) if share else len(measured) // len(values), pairs, draws, len(together), found[name] / draws,
                lower, upper,
            )  # fmt: skip


def _folder(share: float) -> str:
    return f"slowed-{1000 * share:02.0f}-per-mille"


def _units(of_extra_work: float) -> int:
    """Whole ones; never none of them for a slow-down that is one."""
    return max(1, round(of_extra_work)) if of_extra_work else 0
