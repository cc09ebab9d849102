"""Is head slower, or hungrier, than base? One verdict for each benchmark, and one for all.

Exit status: 0 no regression, 1 regression, 2 inconclusive or not comparable. What is not known is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from conformance.bench.results import Benchmark, Recording
from conformance.bench.statistics import (
    DETECTABLE,
    FALSE_ALARMS,
    Slowdown,
    centre,
    holm,
    pairs_needed,
    slowdown,
    unpaired_slowdown,
)

NO_REGRESSION, REGRESSION, INCONCLUSIVE = 0, 1, 2
#: Memory is counted, not sampled: more than this share above base's is more.
MEMORY_SLACK = 0.001


class Finding(str, Enum):
    """What a comparison says of one benchmark."""

    SAME = "no regression"
    FASTER = "faster"
    SLOWER = "slower"
    HUNGRIER = "more memory"
    MISSING = "missing"
    BROKEN = "not measured in head"
    NEW = "new"
    INCONCLUSIVE = "inconclusive"

    __str__ = str.__str__

    @property
    def exit_status(self) -> int:
        if self in {Finding.SLOWER, Finding.HUNGRIER, Finding.MISSING, Finding.BROKEN}:
            return REGRESSION
        return INCONCLUSIVE if self is Finding.INCONCLUSIVE else NO_REGRESSION


@dataclass(frozen=True)
class Compared:
    """One benchmark: the finding, why in words, and the numbers behind it (ratios of head over base, bytes)."""

    name: str
    finding: Finding
    why: str
    ratio: float | None = None
    at_most: float | None = None
    deviation: float | None = None
    probability: float | None = None
    pairs: int | None = None
    base_bytes: int | None = None
    head_bytes: int | None = None


@dataclass(frozen=True)
class Comparison:
    """The verdict on all benchmarks of two recordings."""

    base: str
    head: str
    benchmarks: tuple[Compared, ...]
    detectable: float
    level: float
    refusal: str | None = None
    paired: bool = True

    @property
    def exit_status(self) -> int:
        found = {compared.finding.exit_status for compared in self.benchmarks}
        if REGRESSION in found:
            return REGRESSION
        nothing_compared = not any(compared.ratio is not None for compared in self.benchmarks)
        return INCONCLUSIVE if self.refusal or INCONCLUSIVE in found or nothing_compared else NO_REGRESSION

    @property
    def result(self) -> str:
        return {NO_REGRESSION: "NO REGRESSION", REGRESSION: "REGRESSION", INCONCLUSIVE: "INCONCLUSIVE"}[
            self.exit_status
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "result": self.result,
            "base": self.base,
            "head": self.head,
            "detectable": math.expm1(self.detectable),
            "falseAlarms": self.level,
            "refusal": self.refusal,
            "inTurns": self.paired,
            "benchmarks": [asdict(compared) for compared in self.benchmarks],
        }


def compare(
    base: Recording,
    head: Recording,
    *,
    paired: bool,
    detectable: float = DETECTABLE,
    level: float = FALSE_ALARMS,
    refusal: str | None = None,
) -> Comparison:
    """Hold ``head`` against ``base``, run by run where they were made in turn (``paired``).

    ``detectable`` is the logarithm of the ratio that must be excluded before a benchmark counts as unchanged; ``level`` bounds
    the probability of a false alarm over all benchmarks together.
    """
    if refusal:
        return Comparison(base.label, head.label, (), detectable, level, refusal, paired)
    names = list(dict.fromkeys([*base.names, *head.names]))
    tests = {name: test for name in names if (test := _tested(base, head, name, paired)) is not None}
    slower = holm({name: test.probability for name, test in tests.items()}, level)
    unit = "pairs" if paired else "runs"

    def hint(test: Slowdown) -> str:
        needed = pairs_needed(test.deviation, len(tests), detectable=detectable, level=level)
        return (
            f"about {needed} {unit} would tell (--{unit})"
            if needed
            else f"not even a thousand {unit} would tell: take a quieter machine, or a larger --detect"
        )

    def judged(name: str) -> Compared:
        test = tests.get(name)
        return _unmeasured(name, base, head) or _measured(
            name,
            base,
            head,
            test,
            slower=name in slower,
            detectable=detectable,
            hint=hint(test) if test else "",
        )

    return Comparison(base.label, head.label, tuple(map(judged, names)), detectable, level, None, paired)


def _tested(base: Recording, head: Recording, name: str, paired: bool) -> Slowdown | None:
    if paired:
        ratios = logarithms(base, head, name)
        return slowdown(ratios) if len(ratios) > 1 else None
    before, after = ([math.log(value) for value in side.seconds(name) if value] for side in (base, head))
    return unpaired_slowdown(before, after) if min(len(before), len(after)) > 1 else None


def logarithms(base: Recording, head: Recording, name: str) -> list[float]:
    """Of head's time over base's, for each pair of runs that both measured the benchmark."""
    return [
        _logarithm(before.benchmarks[name], after.benchmarks[name])
        for before, after in zip(base.runs, head.runs, strict=True)
        if name in before.benchmarks and name in after.benchmarks
    ]


def _logarithm(base: Benchmark, head: Benchmark) -> float:
    """Of head's time over base's: round by round where they took turns, so that what slowed both cancels."""
    skipped = max(base.left_out, head.left_out)
    pairs = list(zip(base.rounds, head.rounds, strict=False))[skipped:]
    if base.in_turns and head.in_turns and pairs:
        return centre([math.log(after / before) for before, after in pairs])
    return math.log(head.seconds / base.seconds)


def _unmeasured(name: str, base: Recording, head: Recording) -> Compared | None:
    """What is to be said of a benchmark that one of the two did not measure; None where both did."""
    had, has = (any(recording.seconds(name)) for recording in (base, head))
    if had and has:
        return None
    before, after = base.trouble(name), head.trouble(name)
    if has or (after or "").startswith("alone"):
        why = f"nothing to compare it with: in {base.label} {before or 'there is no such benchmark'}"
        return Compared(name, Finding.NEW, why)
    if name not in head.names:
        if had or (before or "").startswith("alone"):
            why = f"{base.label} has it, {head.label} has not: renamed or removed"
            return Compared(name, Finding.MISSING, why)
        return Compared(name, Finding.INCONCLUSIVE, f"in {base.label} {before}")
    if had or name not in base.names:
        return Compared(name, Finding.BROKEN, f"in {head.label} {after}")
    return Compared(name, Finding.INCONCLUSIVE, f"in both {after}")


def _measured(
    name: str,
    base: Recording,
    head: Recording,
    test: Slowdown | None,
    *,
    slower: bool,
    detectable: float,
    hint: str,
) -> Compared:
    """The finding on a benchmark that both measured; ``hint`` says what would make an inconclusive one conclusive."""
    before, after = base.peak_memory(name), head.peak_memory(name)
    numbers: dict[str, Any] = {"base_bytes": before, "head_bytes": after}
    if test is not None:
        numbers |= {
            "ratio": math.exp(test.estimate),
            "at_most": math.exp(test.at_most),
            "deviation": test.deviation,
            "probability": test.probability,
            "pairs": test.pairs,
        }

    def found(finding: Finding, why: str) -> Compared:
        return Compared(name, finding, why, **numbers)

    trouble = base.trouble(name) or head.trouble(name)
    if trouble:
        return found(Finding.INCONCLUSIVE, f"disturbed: {trouble}")
    if slower and test is not None:
        return found(Finding.SLOWER, f"{_percent(test.estimate)} slower (p = {test.probability:.2g})")
    if before is not None and after is not None and after - before > before * MEMORY_SLACK:
        more = f"{after - before:,} bytes more at the peak: {after:,}, and {before:,} before"
        return found(Finding.HUNGRIER, more)
    if (before is None) != (after is None):
        only = head.label if before is None else base.label
        return found(Finding.INCONCLUSIVE, f"memory was recorded in {only} alone")
    if before is None:
        return found(Finding.INCONCLUSIVE, "memory was recorded in neither")
    if test is None:
        return found(
            Finding.INCONCLUSIVE,
            "one run of each says nothing of how far runs stray: record several (--runs)",
        )
    if test.at_most > detectable:
        return found(
            Finding.INCONCLUSIVE, f"up to {_percent(test.at_most)} slower cannot be excluded; {hint}"
        )
    if test.at_most < 0:
        return found(Finding.FASTER, f"{_percent(-test.estimate)} faster")
    return found(Finding.SAME, f"at most {_percent(max(test.at_most, 0.0))} slower")


def _percent(logarithm: float) -> str:
    return f"{100 * math.expm1(logarithm):.1f} %"


def head_failed(base: str, head: str, why: str) -> Comparison:
    """The verdict where head's process did not live to measure anything."""
    return Comparison(base, head, (Compared("head", Finding.BROKEN, why),), DETECTABLE, FALSE_ALARMS)


def slowest_first(comparison: Comparison) -> Iterator[Compared]:
    """What fails first, then what is not known, then the rest, the slowest of each first."""
    order = {REGRESSION: 0, INCONCLUSIVE: 1, NO_REGRESSION: 2}
    yield from sorted(
        comparison.benchmarks, key=lambda one: (order[one.finding.exit_status], -(one.ratio or 0.0))
    )
