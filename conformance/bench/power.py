"""How often does a comparison cry wolf, and how large a slow-down does it find? Measured, on the machine at hand."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from conformance.bench.comparison import logarithms
from conformance.bench.request import BenchRequest
from conformance.bench.results import Recording, labelled
from conformance.bench.running import Announce, Pairs, Side, record
from conformance.bench.statistics import FALSE_ALARMS, holm, rate_bounds, slowdown
from conformance.run_request import CannotAssess

#: Shares of a benchmark's time that are added to it; nothing first, which is the question of false alarms.
SLOWDOWNS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
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


def record_slowdowns(
    request: BenchRequest, recorded: int, out: Path, *, processes: str, timeout: float, announce: Announce
) -> dict[float, tuple[Recording, Recording]]:
    """``recorded`` pairs of the installed code with itself for each of :data:`SLOWDOWNS`, head's rounds made longer by it.

    Kinds are recorded in turn, so that none of them has the quiet hour for itself.
    """
    units = _units(request, out / "calibration", timeout, announce)
    made: dict[float, list[dict[str, tuple[Any, str]]]] = {share: [] for share in SLOWDOWNS}
    own = Side("installed", None)
    with Pairs(own, own, processes=processes, timeout=timeout) as measuring:
        for number in range(recorded):
            for share in SLOWDOWNS:
                announce(f"slowed by {100 * share:g} %, pair", number + 1, recorded)
                slowed = {name: round(share * per_round) for name, per_round in units.items()}
                slower = replace(request, injected=slowed)
                made[share].append(measuring.measure(request, slower, number, out / _folder(share)))
    return {
        share: (
            labelled("installed", [pair["base"] for pair in pairs]),
            labelled(f"slowed by {100 * share:g} %", [pair["head"] for pair in pairs]),
        )
        for share, pairs in made.items()
    }


def read_recording(place: Path) -> dict[float, tuple[Recording, Recording]]:
    """What :func:`record_slowdowns` stored in ``place``.

    Raises:
        CannotAssess: where it holds no such recording.
    """
    runs = place / "runs" if (place / "runs").is_dir() else place
    found = {}
    for share in SLOWDOWNS:
        sides = [sorted((runs / _folder(share)).glob(f"{name}-*.json")) for name in ("base", "head")]
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


def _units(request: BenchRequest, out: Path, timeout: float, announce: Announce) -> dict[str, float]:
    """How many units of extra work are as long as a round of each benchmark."""
    recording = record(request, 1, out, timeout=timeout, announce=announce)
    run = recording.runs[0]
    unit = run.ceilings.get("seconds_per_unit")
    if not unit or not run.benchmarks:
        raise CannotAssess(
            f"nothing could be measured: {'; '.join(run.unmeasured.values()) or 'no benchmark'}"
        )
    return {name: one.seconds / unit for name, one in run.benchmarks.items()}
