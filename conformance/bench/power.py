"""Measures how often a comparison cries wolf on this machine, and how large a slow-down it
finds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import cycle
from pathlib import Path

from conformance.bench.parent.checkouts import Side
from conformance.bench.parent.recording import Announce, Pairs, record, record_pairs
from conformance.bench.request import BenchRequest
from conformance.bench.results.comparable import in_turns, why_not_comparable
from conformance.bench.results.comparison import Finding, compare, pairs_of
from conformance.bench.results.drawing import DRAWS, Confirmation, PowerReport, Recorded, rates
from conformance.bench.results.stored import Recording, read
from conformance.errors import CannotAssess

SLOWDOWNS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
"""Shares of a benchmark's time that are added to it; the first, nothing, measures false alarms."""
CONFIRMED = (0.05, 0.03)
"""Slow-downs of the end-to-end comparisons: one to be found nearly always, one most of the time."""
MEMORY_SHARE = 0.01
"""The share of the smallest peak that is injected: ten times what counts as more memory."""
_CALIBRATING = 0.5
"""A slow-down so large that a few pairs show how many units of extra work it takes."""
_CALIBRATING_PAIRS = 3
_MEMORY = "more-memory"
_CONFIRMATION = "confirmation"


@dataclass(frozen=True)
class Calibration:
    """The units of extra work that last as long as a round of each benchmark, and the smallest
    peak."""

    units: Mapping[str, float]
    peak_bytes: int


@dataclass(frozen=True)
class Experiment:
    """Pairs of the installed code with itself, with head's rounds slowed on purpose.

    Everything measured is stored in `out` at once, for `read_recording`, `confirmations` and
    `memory_found` to read.
    """

    request: BenchRequest
    out: Path
    timeout: float
    announce: Announce

    def run(self, recorded: int, comparisons: int, pairs: int) -> None:
        """Calibrate, record `recorded` pairs of each slow-down, inject memory, and run
        `comparisons` of `pairs` pairs.

        Raises:
            CannotAssess: if nothing could be measured.
            RunFailed: if a process died.
        """
        calibration = self.calibrate()
        self.record(calibration, recorded)
        self.inject_memory(calibration)
        self.confirm(calibration, comparisons, pairs)

    def calibrate(self) -> Calibration:
        """Time the benchmarks and a unit of extra work, then measure the unit more closely in
        turns.

        Pairs with and without much extra work show how long a unit is: only times taken in turns
        can be told apart that closely.

        Raises:
            CannotAssess: if nothing could be measured.
        """
        place = self.out / "calibration"
        run = record(self.request, 1, place, timeout=self.timeout, announce=self.announce).runs[0]
        unit = run.ceilings.get("seconds_per_unit")
        if not unit or not run.benchmarks:
            why = "; ".join(run.unmeasured.values()) or "no benchmark"
            raise CannotAssess(f"nothing could be measured: {why}")
        peak = min(one.peak_memory or 0 for one in run.benchmarks.values())
        guess = {name: one.seconds / unit for name, one in run.benchmarks.items()}
        slower = self._slowed(Calibration(guess, peak), _CALIBRATING)
        both = self._pairs_of("calibrating, pair", slower, _CALIBRATING_PAIRS, place)
        taken = dict.fromkeys(slower.injected, 0.0)
        for name in taken:
            if pairs := pairs_of(*both, name):
                taken[name] = math.expm1(statistics.fmean(pair.logarithm for pair in pairs))
        if unmeasured := [name for name, share in taken.items() if share < _CALIBRATING / 10]:
            raise CannotAssess(
                f"extra work of half a round's length does not show in {', '.join(unmeasured)}: "
                f"the machine is too busy, or a benchmark failed (bench run tells why)"
            )
        return Calibration(
            {name: units / taken[name] for name, units in slower.injected.items()}, peak
        )

    def record(self, calibration: Calibration, recorded: int) -> None:
        """Record `recorded` pairs for each of `SLOWDOWNS` in turn, so that none has a quiet hour to
        itself."""
        own = Side("installed", None)
        with Pairs(own, own, timeout=self.timeout) as measuring:
            for number in range(recorded):
                for share in SLOWDOWNS:
                    self.announce(f"slowed by {100 * share:g} %, pair", number + 1, recorded)
                    slower = self._slowed(calibration, share)
                    measuring.measure(self.request, slower, number, self.out / _folder(share))

    def inject_memory(self, calibration: Calibration) -> None:
        """Measure a pair in which head holds extra memory: one per cent of the smallest peak."""
        injected = max(1, round(MEMORY_SHARE * calibration.peak_bytes))
        hungrier = replace(self.request, injected_bytes=injected)
        self._pairs_of("more memory, pair", hungrier, 1, self.out / _MEMORY)

    def confirm(self, calibration: Calibration, comparisons: int, pairs: int) -> None:
        """Run comparisons end to end: every other one without a slow-down, the rest with one of
        `CONFIRMED`."""
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
            timeout=self.timeout, what=what, announce=self.announce,
        )  # fmt: skip

    def _slowed(self, calibration: Calibration, share: float) -> BenchRequest:
        """The request with whole units of extra work; at least one if there is any slow-down."""
        units = {
            name: max(1, round(share * per_round)) if share else 0
            for name, per_round in calibration.units.items()
        }
        return replace(self.request, injected=units)


def report(places: Sequence[Path], pairs: int, *, draws: int = DRAWS, seed: int = 0) -> PowerReport:
    """What the recordings in `places` say about comparisons of `pairs` pairs.

    Raises:
        CannotAssess: where a place holds no recording, or fewer pairs than a comparison takes.
    """
    recorded = read_recording(*places)
    _, (base, _) = next(_stored(places[0]))
    return PowerReport(
        environment=base.runs[0].environment,
        pairs=pairs,
        rates=tuple(rates(recorded, pairs, draws=draws, seed=seed)),
        confirmations=tuple(one for place in places for one in confirmations(place)),
        memory=next(filter(None, map(memory_found, places)), None),
        recorded=recorded,
    )


def read_recording(*places: Path) -> Recorded:
    """All pairs that an `Experiment` stored in one of `places`: the recorded ones, and those of
    each confirming comparison.

    Raises:
        CannotAssess: if a place holds no such recording, or they were not made alike.
    """
    found: Recorded = {share: [] for share in SLOWDOWNS}
    first: Recording | None = None
    for share, (base, head) in (each for place in places for each in _stored(place)):
        first = first or base
        refusal = why_not_comparable(first, base)
        if refusal:
            raise CannotAssess(f"recordings cannot be read together: {refusal}")
        values = {name: pairs_of(base, head, name) for name in base.names}
        # A benchmark that could not be measured (a missing attention, say) has no rate; the others
        # have theirs.
        found[share].append({name: own for name, own in values.items() if own})
    return {share: together for share, together in found.items() if together}


def confirmations(place: Path) -> Iterator[Confirmation]:
    """The verdict of each end-to-end comparison that an `Experiment` stored in `place`."""
    for folder, share in _confirming(place):
        together = _pairs_in(folder)
        if together is None or len(together[1].runs) < 2:
            continue  # interrupted before there was anything to judge
        ended = [datetime.fromisoformat(run.recorded) for run in together[1].runs]
        verdict, pairs = compare(*together, paired=True), len(ended)
        slower = tuple(one.name for one in verdict.benchmarks if one.finding is Finding.SLOWER)
        # The time between the first and the last end leaves out the first pair.
        minutes = (ended[-1] - ended[0]).total_seconds() / 60 * pairs / (pairs - 1)
        yield Confirmation(share, pairs, verdict.result, slower, round(minutes, 2))


def memory_found(place: Path) -> dict[str, int] | None:
    """The injected bytes, the number of benchmarks found to need more memory, and the number of
    benchmarks."""
    pairs = _pairs_in(_runs(place) / _MEMORY)
    if pairs is None:
        return None
    found = compare(*pairs, paired=True).benchmarks
    hungrier = sum(one.finding is Finding.HUNGRIER for one in found)
    injected = pairs[1].runs[0].asked["injected_bytes"]
    return {"injectedBytes": injected, "found": hungrier, "of": len(found)}


def _stored(place: Path) -> Iterator[tuple[float, tuple[Recording, Recording]]]:
    """The recordings in `place` that were measured together, each with its slow-down."""
    found = False
    recorded = [(_runs(place) / _folder(share), share) for share in SLOWDOWNS]
    for folder, share in (*recorded, *_confirming(place)):
        if pairs := _pairs_in(folder):
            found = True
            yield share, pairs
    if not found:
        what = "holds no pairs of runs" if place.is_dir() else "is not a folder"
        raise CannotAssess(
            f"{place} {what}: `conformance bench power --out DIR` records them in DIR"
        )


def _confirming(place: Path) -> list[tuple[Path, float]]:
    """The folder of each end-to-end comparison in `place`, in order, and its slow-down."""
    runs = _runs(place) / _CONFIRMATION
    return sorted(
        (folder, share) for share in SLOWDOWNS for folder in runs.glob(f"*/{_folder(share)}")
    )


def _runs(place: Path) -> Path:
    return place / "runs" if (place / "runs").is_dir() else place


def _pairs_in(folder: Path) -> tuple[Recording, Recording] | None:
    """The pairs with both runs stored; an interrupted pair leaves one run or none."""
    sides = [folder / side for side in ("base", "head")]
    if not all(any(side.glob("*.json")) for side in sides):
        return None
    taken = in_turns(*map(read, sides))
    return None if taken is None else taken[:2]


def _folder(share: float) -> str:
    return f"slowed-{1000 * share:02.0f}-per-mille"
