"""Is head slower, or hungrier, than base? One verdict for each benchmark, and one for all.

Exit status: 0 no regression, 1 regression, 2 inconclusive or not comparable. What is not known is
never a pass.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from conformance.bench.results.comparable import environment_change, why_not_comparable
from conformance.bench.results.statistics import (
    DETECTABLE,
    FALSE_ALARMS,
    NEGLIGIBLE,
    Slowdown,
    centre,
    holm,
    pairs_needed,
    slowdown,
    unpaired_slowdown,
)
from conformance.bench.results.stored import Benchmark, Recording
from conformance.bench.units import size

NO_REGRESSION, REGRESSION, INCONCLUSIVE = 0, 1, 2
_RESULTS = ("NO REGRESSION", "REGRESSION", "INCONCLUSIVE")
"""In words, by exit status."""
MEMORY_SLACK = 0.001
"""Memory is counted, not sampled: more than this share above base's counts as more."""
STALL = 1.5
"""A round that takes this many times as long as base's median round stalls. The centre of a pair's
rounds does not show what happens in fewer than a quarter of them, such as a cache that is rebuilt
every tenth time."""
FEW_STALLS = 0.01
"""Head may stall in this share more of its rounds than base before it counts: about one round of a
pair."""
STALL_PAIRS = 6
"""Fewer pairs than this say nothing of stalls: their counts are too often all the same."""


class Finding(str, Enum):
    """What a comparison finds for one benchmark."""

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
    """One benchmark: the finding, why in words, the finding on `time` alone, which memory does not
    hide (None if it was not timed on both sides), and the numbers behind it (ratios of head over
    base, seconds, bytes)."""

    name: str
    finding: Finding
    why: str
    time: Finding | None = None
    ratio: float | None = None
    at_most: float | None = None
    deviation: float | None = None
    probability: float | None = None
    pairs: int | None = None
    base_seconds: float | None = None
    head_seconds: float | None = None
    base_bytes: int | None = None
    head_bytes: int | None = None


@dataclass(frozen=True)
class Comparison:
    """The verdict on all benchmarks of two recordings."""

    base: str
    head: str
    benchmarks: tuple[Compared, ...]
    detectable: float
    refusal: str | None = None
    paired: bool = True
    environment_change: str = ""

    @property
    def exit_status(self) -> int:
        found = {compared.finding.exit_status for compared in self.benchmarks}
        if REGRESSION in found:
            return REGRESSION
        nothing_compared = all(compared.ratio is None for compared in self.benchmarks)
        unknown = self.refusal or INCONCLUSIVE in found or nothing_compared
        return INCONCLUSIVE if unknown else NO_REGRESSION

    @property
    def result(self) -> str:
        return _RESULTS[self.exit_status]

    def as_json(self) -> dict[str, Any]:
        return {
            "result": self.result,
            "base": self.base,
            "head": self.head,
            "detectable": math.expm1(self.detectable),
            "falseAlarms": FALSE_ALARMS,
            "refusal": self.refusal,
            "inTurns": self.paired,
            "environmentChange": self.environment_change or None,
            "benchmarks": [asdict(compared) for compared in self.benchmarks],
        }


def compare(
    base: Recording,
    head: Recording,
    *,
    paired: bool,
    detectable: float = DETECTABLE,
    allow_environment_change: bool = False,
) -> Comparison:
    """Compare `head` with `base`, run by run if they were made in turns (`paired`).

    `detectable` is the logarithm of the ratio that must be excluded before a benchmark counts as
    unchanged; `FALSE_ALARMS` bounds the probability of a false alarm over all benchmarks together.
    Recordings of different devices or requests are refused, and of different software unless that
    is allowed.
    """
    refusal = why_not_comparable(base, head, allow_environment_change=allow_environment_change)
    changed = environment_change(base, head)
    told = Comparison(base.label, head.label, (), detectable, refusal, paired, changed)
    if refusal:
        return told
    names = list(dict.fromkeys([*base.names, *head.names]))
    tests = {name: _tests(base, head, name, paired) for name in names}
    slower = called_slower(tests)
    judged_together = sum(map(len, tests.values()))

    def judged(name: str) -> Compared:
        time, hint = tests[name].get("time"), ""
        if time is not None:
            hint = _hint(pairs_needed(time.deviation, judged_together, detectable), paired)
        return _unmeasured(name, base, head) or _measured(
            name, base, head, time, slower.get(name, ""), detectable, hint
        )

    return replace(told, benchmarks=tuple(map(judged, names)))


def _hint(needed: int | None, paired: bool) -> str:
    """What would make an inconclusive finding conclusive."""
    if not paired:
        of_each = f"about {needed}" if needed else "thousands of"
        return (
            f"it would take {of_each} runs of each (bench run --runs), or two commits compared in "
            f"turns"
        )
    if not needed:
        return "use a quieter machine, or a larger --detect"
    return f"about {needed} pairs would tell (--pairs)"


class Pair(NamedTuple):
    """One benchmark in a pair of runs: the logarithm of head's usual time over base's, the share by
    which more of head's rounds stall, and the logarithm of the ratio of means, including stalls and
    interruptions."""

    logarithm: float
    stalls: float
    mean: float


Tests = Mapping[str, Slowdown]
"""The tests of a benchmark: of the `time` of its rounds, and of the share of rounds that stall.

`stalls` is absent if it cannot be judged: for runs not made in turns, for few pairs, and if head
takes less time overall. Fewer than two runs leave both out.
"""


def tests_of(pairs: Sequence[Pair]) -> Tests:
    """Both tests of a benchmark, from the pairs that measured it."""
    if len(pairs) < 2:
        return {}
    time = slowdown([pair.logarithm for pair in pairs])
    # A head that takes less time overall although it stalls has made a good trade.
    if len(pairs) < STALL_PAIRS or statistics.fmean(pair.mean for pair in pairs) <= 0:
        return {"time": time}
    stalls = slowdown([pair.stalls for pair in pairs], FEW_STALLS, least_deviation=FEW_STALLS)
    return {"time": time, "stalls": stalls}


def called_slower(tests: Mapping[str, Tests]) -> dict[str, str]:
    """The benchmarks that are slower, and by how much in words; all tests together raise a false
    alarm with probability `FALSE_ALARMS`."""
    every = {(name, what): test for name, own in tests.items() for what, test in own.items()}
    refused = holm({key: test.probability for key, test in every.items()})
    found: dict[str, list[str]] = {}
    for (name, what), test in every.items():
        if (name, what) in refused:
            more = f"{_percent(test.estimate)} slower"
            if what == "stalls":
                more = f"{100 * test.estimate:.1f} % more of its rounds stall"
            found.setdefault(name, []).append(f"{more} (p = {test.probability:.2g})")
    return {name: ", and ".join(told) for name, told in found.items()}


def _tests(base: Recording, head: Recording, name: str, paired: bool) -> Tests:
    if paired:
        return tests_of(pairs_of(base, head, name))
    before, after = (
        [math.log(one.seconds) for one in side.measured(name)] for side in (base, head)
    )
    few = min(len(before), len(after)) < 2
    return {} if few else {"time": unpaired_slowdown(before, after)}


def pairs_of(base: Recording, head: Recording, name: str) -> list[Pair]:
    """The benchmark in each pair of runs that both measured it."""
    return [
        _pair(before.benchmarks[name], after.benchmarks[name])
        for before, after in zip(base.runs, head.runs, strict=True)
        if name in before.benchmarks and name in after.benchmarks
    ]


def _pair(base: Benchmark, head: Benchmark) -> Pair:
    """Compare round by round if they took turns, so that what slowed both cancels."""
    skipped = max(base.left_out, head.left_out)
    pairs = list(zip(base.rounds, head.rounds, strict=False))[skipped:]
    if not (base.in_turns and head.in_turns and pairs):
        ratio = math.log(head.seconds / base.seconds)
        return Pair(ratio, 0.0, ratio)
    usual = statistics.median(before for before, _ in pairs)
    stalls = [(after > STALL * usual) - (before > STALL * usual) for before, after in pairs]
    before, after = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    return Pair(
        centre([math.log(after / before) for before, after in pairs]),
        statistics.fmean(stalls),
        math.log(after / before),
    )


def _unmeasured(name: str, base: Recording, head: Recording) -> Compared | None:
    """The finding on a benchmark that one of the two did not measure; None if both did."""
    had, has = (bool(recording.measured(name)) for recording in (base, head))
    if had and has:
        return None
    before, after = (recording.trouble(name) or "" for recording in (base, head))
    gone = name not in head.names
    only_there = f"{base.label} has it, {head.label} does not: renamed or removed"
    only_here = (
        f"nothing to compare it with: in {base.label} {before or 'there is no such benchmark'}"
    )
    # A benchmark that failed in base may have existed there; one without room or attention did not.
    new = Finding.INCONCLUSIVE if before.startswith("failed") else Finding.NEW
    table = (
        (has or after.startswith("alone"), new, only_here),
        (gone and (had or before.startswith("alone")), Finding.MISSING, only_there),
        (gone, Finding.INCONCLUSIVE, f"in {base.label} {before}"),
        (had or name not in base.names, Finding.BROKEN, f"in {head.label} {after}"),
        (True, Finding.INCONCLUSIVE, f"in both {after}"),
    )
    return Compared(name, *_first(table))


def _measured(
    name: str,
    base: Recording,
    head: Recording,
    test: Slowdown | None,
    slower: str,
    detectable: float,
    hint: str,
) -> Compared:
    """The finding on a benchmark that both measured.

    `slower` says by how much head is slower, empty if it is not; `hint` what would make an
    inconclusive finding conclusive.
    """
    before, after = base.peak_memory(name), head.peak_memory(name)
    trouble = base.trouble(name) or head.trouble(name)
    more = _more_memory(before, after)
    recorded_in = [side.label for side, peak in ((base, before), (head, after)) if peak is not None]
    at_most, estimate = (math.inf, 0.0) if test is None else (test.at_most, test.estimate)
    on_memory = (
        (more, Finding.HUNGRIER, more),
        (not recorded_in, Finding.INCONCLUSIVE, "memory was recorded in neither"),
        (len(recorded_in) == 1, Finding.INCONCLUSIVE,
         f"memory was recorded in {''.join(recorded_in)} alone"),
    )  # fmt: skip
    on_time = (
        (test is None, Finding.INCONCLUSIVE,
         "one run does not show how much runs vary: record several of each (bench run --runs)"),
        (at_most > detectable, Finding.INCONCLUSIVE,
         f"up to {_percent(at_most)} slower cannot be excluded; {hint}"),
        (at_most < -NEGLIGIBLE, Finding.FASTER, f"{-100 * math.expm1(estimate):.1f} % less time"),
        (True, Finding.SAME, f"at most {_percent(max(at_most, 0.0))} slower"),
    )  # fmt: skip
    first = (
        (trouble, Finding.INCONCLUSIVE, f"disturbed: {trouble}"),
        (slower, Finding.SLOWER, f"{slower}, and {more}" if more else slower),
    )
    compared = Compared(
        name, *_first((*first, *on_memory, *on_time)), _first((*first, *on_time))[0],
        base_seconds=base.typical(name), head_seconds=head.typical(name),
        base_bytes=before, head_bytes=after,
    )  # fmt: skip
    if test is None:
        return compared
    return replace(
        compared, ratio=math.exp(estimate), at_most=math.exp(at_most), deviation=test.deviation,
        probability=test.probability, pairs=test.pairs,
    )  # fmt: skip


def _first(table: Sequence[tuple[object, Finding, str]]) -> tuple[Finding, str]:
    """The finding, and why, of the first row of (when, finding, why) that holds; one must."""
    return next((finding, why) for when, finding, why in table if when)


def _more_memory(before: int | None, after: int | None) -> str:
    """How much more memory head needs at the peak, in words; empty within `MEMORY_SLACK`."""
    if before is None or after is None or after - before <= before * MEMORY_SLACK:
        return ""
    share = 100 * (after - before) / max(before, 1)
    return (
        f"{size(after - before)} ({share:.2g} %) more memory at the peak: {size(after)}, up from "
        f"{size(before)}"
    )


def _percent(logarithm: float) -> str:
    return f"{100 * math.expm1(logarithm):.1f} %"


def head_failed(base: str, head: str, why: str, detectable: float = DETECTABLE) -> Comparison:
    """The verdict if head's process died before it measured anything."""
    broken = Compared("head", Finding.BROKEN, why)
    return Comparison(base, head, (broken,), detectable)


def with_pairs_missing(comparison: Comparison, missing: int) -> Comparison:
    """The verdict on stored pairs when `missing` are lacking: what they would have shown is
    unknown."""
    why = (
        f"{missing} pairs lack one run or both: the comparison was interrupted, or one of its "
        f"processes failed"
    )
    others = Compared("other pairs", Finding.INCONCLUSIVE, why)
    return replace(comparison, benchmarks=(*comparison.benchmarks, others))


def needs_more_memory(one: Compared) -> bool:
    """Whether head needs more memory at the peak, whatever became of its time."""
    return bool(_more_memory(one.base_bytes, one.head_bytes))


def slowest_first(comparison: Comparison) -> list[Compared]:
    """Failures first, then inconclusive findings, then the rest; the slowest of each first."""
    order = (REGRESSION, INCONCLUSIVE, NO_REGRESSION)
    return sorted(
        comparison.benchmarks,
        key=lambda one: (order.index(one.finding.exit_status), -(one.ratio or 0.0)),
    )
