"""How often does a comparison cry wolf, and how large a slow-down does it find? Measured, on the machine at hand."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from conformance.bench.comparison import Finding, compare, logarithms
from conformance.bench.request import BenchRequest
from conformance.bench.results import Recording, labelled
from conformance.bench.running import Announce, Pairs, Side, record
from conformance.bench.statistics import FALSE_ALARMS, holm, rate_bounds, slowdown
from conformance.run_request import CannotAssess

#: Shares of a benchmark's time that are added to it; nothing first, which is the question of false alarms.
SLOWDOWNS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
#: What comparisons are confirmed with, end to end: what is to be found nearly always, and most of the time.
CONFIRMED = (0.05, 0.03)
#: Of the smallest peak: ten times what counts as more memory.
MEMORY_SHARE = 0.01
DRAWS = 1000


@dataclass(frozen=True)
class Rate:
    """How many of ``draws`` comparisons of ``pairs`` pairs called a benchmark slower that had been slowed by ``slowdown``
    (``measured``: as the recorded pairs show it); bounds are Clopper and Pearson's, one-sided, 95 %."""

    benchmark: str
    slowdown: float
    measured: float
    deviation: float
    pairs: int
    draws: int
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
    """One comparison as a user runs it: what head was slowed by, the verdict, and which benchmarks it called slower."""

    slowdown: float
    result: str
    slower: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Experiment:
    """Pairs of the installed code with itself, head's rounds made longer on purpose."""

    request: BenchRequest
    out: Path
    processes: str
    timeout: float
    announce: Announce

    def calibrate(self) -> Calibration:
        """Time the benchmarks and a unit of extra work, once.

        Raises:
            CannotAssess: if nothing could be measured.
        """
        recording = record(
            self.request, 1, self.out / "calibration", timeout=self.timeout, announce=self.announce
        )
        run = recording.runs[0]
        unit = run.ceilings.get("seconds_per_unit")
        if not unit or not run.benchmarks:
            raise CannotAssess(
                f"nothing could be measured: {'; '.join(run.unmeasured.values()) or 'no benchmark'}"
            )
        return Calibration(
            {name: one.seconds / unit for name, one in run.benchmarks.items()},
            min(one.peak_memory or 0 for one in run.benchmarks.values()),
        )

    def record(self, calibration: Calibration, recorded: int) -> dict[float, tuple[Recording, Recording]]:
        """``recorded`` pairs for each of :data:`SLOWDOWNS`, in turn: none of them has the quiet hour for itself."""
        made: dict[float, list[dict[str, tuple[Any, str]]]] = {share: [] for share in SLOWDOWNS}
        with self._pairs() as measuring:
            for number in range(recorded):
                for share in SLOWDOWNS:
                    self.announce(f"slowed by {100 * share:g} %, pair", number + 1, recorded)
                    slower = self._slowed(calibration, share)
                    place = self.out / _folder(share)
                    made[share].append(measuring.measure(self.request, slower, number, place))
        return {share: _recordings(share, pairs) for share, pairs in made.items()}

    def inject_memory(self, calibration: Calibration) -> dict[str, Any]:
        """Let head hold one per cent more than the smallest peak: how many benchmarks are found to need more memory."""
        hoarded = max(1, round(MEMORY_SHARE * calibration.peak_bytes))
        with self._pairs() as measuring:
            self.announce("more memory, pair", 1, 1)
            hungrier = replace(self.request, injected_bytes=hoarded)
            pair = measuring.measure(self.request, hungrier, 0, self.out / "more-memory")
        found = compare(*_recordings(0.0, [pair]), paired=True).benchmarks
        return {
            "injectedBytes": hoarded,
            "found": sum(one.finding is Finding.HUNGRIER for one in found),
            "of": len(found),
        }

    def confirm(self, calibration: Calibration, comparisons: int, pairs: int) -> Iterator[Confirmation]:
        """Comparisons end to end, every other one of them without a slow-down, the others with one of :data:`CONFIRMED`."""
        kinds = [kind for share in CONFIRMED for kind in (0.0, share)]
        for number, share in zip(range(comparisons), cycle(kinds), strict=False):
            made = []
            with self._pairs() as measuring:
                for pair in range(pairs):
                    self.announce(
                        f"comparison {number + 1} of {comparisons}, slowed by {100 * share:g} %, pair",
                        pair + 1,
                        pairs,
                    )
                    place = self.out / "confirmation" / f"{number + 1:03d}"
                    made.append(
                        measuring.measure(self.request, self._slowed(calibration, share), pair, place)
                    )
            verdict = compare(*_recordings(share, made), paired=True)
            slower = tuple(one.name for one in verdict.benchmarks if one.finding is Finding.SLOWER)
            yield Confirmation(share, verdict.result, slower)

    def _pairs(self) -> Pairs:
        own = Side("installed", None)
        return Pairs(own, own, processes=self.processes, timeout=self.timeout)

    def _slowed(self, calibration: Calibration, share: float) -> BenchRequest:
        units = {name: round(share * per_round) for name, per_round in calibration.units.items()}
        return replace(self.request, injected=units)


def _recordings(share: float, pairs: list[dict[str, tuple[Any, str]]]) -> tuple[Recording, Recording]:
    return (
        labelled("installed", [pair["base"] for pair in pairs]),
        labelled(f"slowed by {100 * share:g} %", [pair["head"] for pair in pairs]),
    )


def read_recording(place: Path) -> dict[float, tuple[Recording, Recording]]:
    """What :meth:`Experiment.record` stored in ``place``.

    Raises:
        CannotAssess: where it holds no such recording.
    """
    runs = place / "runs" if (place / "runs").is_dir() else place
    found = {}
    for share in SLOWDOWNS:
        sides = [sorted((runs / _folder(share) / name).glob("*.json")) for name in ("base", "head")]
        if not sides[0] or len(sides[0]) != len(sides[1]):
            raise CannotAssess(
                f"{runs / _folder(share)} holds no pairs of runs: `conformance bench power --out DIR` records them"
            )
        base, head = (
            [(json.loads(path.read_text(encoding="utf-8")), str(path)) for path in side] for side in sides
        )
        found[share] = labelled("installed", base), labelled(f"slowed by {100 * share:g} %", head)
    return found


def rates(
    recordings: Mapping[float, tuple[Recording, Recording]], pairs: int, *, draws: int = DRAWS, seed: int = 0
) -> Iterator[Rate]:
    """Draw comparisons of ``pairs`` recorded pairs, each kind of slow-down for itself, and count what they find.

    Without a slow-down, a comparison that calls any benchmark slower counts as one false alarm, under the name ``any``. Drawn
    comparisons share pairs, so that bounds on the rates are those of the drawing; how far the recording itself strays, fresh
    comparisons tell.

    Raises:
        CannotAssess: if fewer pairs were recorded than a comparison takes.
    """
    source = random.Random(seed)
    for share, (base, head) in recordings.items():
        values = {name: logarithms(base, head, name) for name in base.names}
        recorded = min(map(len, values.values()), default=0)
        if recorded < pairs:
            raise CannotAssess(
                f"{recorded} pairs were recorded, and a comparison takes {pairs}: record more (--recorded)"
            )
        found = dict.fromkeys([*values, "any"], 0)
        for _ in range(draws):
            chosen = source.sample(range(recorded), pairs)
            tests = {name: slowdown([own[pair] for pair in chosen]) for name, own in values.items()}
            slower = holm({name: test.probability for name, test in tests.items()}, FALSE_ALARMS)
            for name in slower:
                found[name] += 1
            found["any"] += bool(slower)
        for name in values if share else ["any"]:
            own = values.get(name) or [value for every in values.values() for value in every]
            lower, upper = rate_bounds(found[name], draws)
            yield Rate(
                name, share, math.expm1(statistics.median(own)), statistics.stdev(own), pairs, draws,
                found[name] / draws, lower, upper,
            )  # fmt: skip


def _folder(share: float) -> str:
    return f"slowed-{1000 * share:02.0f}-per-mille"
