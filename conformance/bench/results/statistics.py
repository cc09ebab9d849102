"""The statistics behind a verdict on speed: Student's t, the steady state, and the paired
comparison.

Imports no torch: it judges numbers that were recorded elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import TypeVar

NEGLIGIBLE = math.log(1.005)
"""Slow-downs up to this count as none: half a per cent, as the logarithm of a ratio."""
DETECTABLE = math.log(1.03)
"""A verdict without a regression excludes slow-downs beyond this: three per cent, likewise."""
FALSE_ALARMS = 0.001
"""How often a comparison of the same code may be called a regression, over all its benchmarks
together."""
MISSES = 0.05
"""How often a slow-down of `DETECTABLE` may be missed, for each benchmark."""
_PAIRS = (*range(4, 30, 2), *range(30, 60, 6), *range(60, 101, 10), 120, 150, 200, 300, 500, 1000)
"""Numbers of pairs to suggest: even, so that each version begins as often as the other."""
Name = TypeVar("Name", bound=Hashable)


def student_tail(t: float, degrees: float) -> float:
    """The probability that Student's t with `degrees` of freedom exceeds `t`."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    # Comes with torch, by way of sympy; heavy, and not needed by every command.
    import mpmath

    inside = degrees / (degrees + t * t)
    half = 0.5 * float(mpmath.betainc(degrees / 2, 0.5, 0, inside, regularized=True))
    return half if t > 0 else 1 - half


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: float) -> float:
    """The `t` that Student's t with `degrees` of freedom stays below with `probability`."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability is between 0 and 1, not {probability}")
    low, high = -1e3, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        below = student_tail(middle, degrees) > 1 - probability
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def steady_from(seconds: Sequence[float]) -> int:
    """The round from which a benchmark runs steadily; those before (warm-up, caches filling) do not
    count.

    White's marginal standard error rule (MSER, Simulation 69, 1997): leave out the number of rounds
    that makes the standard error of the rest smallest, at most half. Rounds that the machine
    interrupted are first cut to twice the median; otherwise a single one would decide.
    """
    if len(seconds) < 4:
        return 0
    cap = 2 * statistics.median(seconds)
    cut = [min(value, cap) for value in seconds]

    def squared_error(start: int) -> float:
        rest = cut[start:]
        return statistics.pvariance(rest) / len(rest)

    return min(range(len(cut) // 2 + 1), key=squared_error)


def centre(values: Sequence[float]) -> float:
    """Hodges and Lehmann's estimate: the median of the means of any two values (Annals of
    Mathematical Statistics 34, 1963).

    In turns, every other round meets caches that the other process has used, so ratios form two
    clusters of equal size, and a median falls anywhere in the gap between them. Interrupted rounds
    sway this estimate little up to a quarter of all (it breaks down at 29 %, a median at half).
    """
    two = combinations_with_replacement(values, 2)
    return statistics.median((one + other) / 2 for one, other in two)


@dataclass(frozen=True)
class Slowdown:
    """What pairs of runs say about the logarithm of head's time over base's.

    `estimate` is the mean over `pairs`, `deviation` the standard deviation of one pair,
    `probability` the p-value if the time is at most negligibly longer, and `at_most` the one-sided
    upper bound, which excludes a regression if it does not exceed what was to be detected.
    """

    pairs: int
    estimate: float
    deviation: float
    probability: float
    at_most: float


def slowdown(
    logarithms: Sequence[float], negligible: float = NEGLIGIBLE, least_deviation: float = 0.0
) -> Slowdown:
    """Student's paired test on the logarithms of head over base, one per pair.

    `least_deviation` is a lower limit on the deviation of values that are counts: a few of them may
    all be the same by chance.

    Raises:
        ValueError: for fewer than two pairs, which have no deviation.
    """
    pairs = len(logarithms)
    if pairs < 2:
        raise ValueError(f"{pairs} pairs of runs have no deviation: at least two are needed")
    deviation = max(statistics.stdev(logarithms), least_deviation)
    return _tested(statistics.fmean(logarithms), deviation, pairs, pairs - 1, negligible)


def unpaired_slowdown(
    base: Sequence[float], head: Sequence[float], negligible: float = NEGLIGIBLE
) -> Slowdown:
    """Welch's test on logarithms of times, for runs that were not paired (Biometrika 34, 1947).

    Raises:
        ValueError: for fewer than two runs of either.
    """
    pairs = min(len(base), len(head))
    if pairs < 2:
        raise ValueError(
            f"{len(base)} and {len(head)} runs cannot be compared: it takes at least two of each "
            f"to see how much runs vary"
        )
    errors = [(statistics.variance(side) / len(side), len(side) - 1) for side in (base, head)]
    error = sum(own for own, _ in errors)
    degrees = error**2 / sum(own**2 / free for own, free in errors) if error else 1.0
    estimate = statistics.fmean(head) - statistics.fmean(base)
    return _tested(estimate, math.sqrt(error * pairs), pairs, degrees, negligible)


def holm(probabilities: Mapping[Name, float], level: float = FALSE_ALARMS) -> set[Name]:
    """The hypotheses to reject, so that the probability of rejecting any wrongly is at most `level`
    (Holm's step-down rule, Scandinavian Journal of Statistics 6, 1979)."""
    refused: set[Name] = set()
    ordered = sorted(probabilities, key=lambda name: probabilities[name])
    for index, name in enumerate(ordered):
        if probabilities[name] > level / (len(ordered) - index):
            break
        refused.add(name)
    return refused


def pairs_needed(
    deviation: float,
    benchmarks: int = 1,
    detectable: float = DETECTABLE,
    level: float = FALSE_ALARMS,
    misses: float = MISSES,
) -> int | None:
    """The number of pairs that find a slow-down of `detectable`, given the deviation of one pair;
    None for more than a thousand."""

    def enough(pairs: int) -> bool:
        t = sum(student_quantile(1 - miss, pairs - 1) for miss in (level / benchmarks, misses))
        return t * deviation / math.sqrt(pairs) <= detectable - NEGLIGIBLE

    return next((pairs for pairs in _PAIRS if enough(pairs)), None)


def _tested(
    estimate: float, deviation: float, pairs: int, degrees: float, negligible: float
) -> Slowdown:
    error = deviation / math.sqrt(pairs)
    if error == 0:
        return Slowdown(pairs, estimate, 0.0, 0.0 if estimate > negligible else 1.0, estimate)
    probability = student_tail((estimate - negligible) / error, degrees)
    at_most = estimate + student_quantile(1 - MISSES, degrees) * error
    return Slowdown(pairs, estimate, deviation, probability, at_most)
