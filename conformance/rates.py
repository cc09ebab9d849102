"""How certain an observed rate is: Clopper and Pearson's bounds. Imports no torch."""

from __future__ import annotations

import math


def rate_bounds(seen: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's one-sided bounds, lower and upper, each at `confidence`, on the rate of
    successes when `seen` in `runs` were observed (Biometrika 26, 1934).

    The lower bound is the rate at which `seen` or more successes would have probability
    `1 - confidence`; the upper bound, `seen` or fewer.
    """
    if not 0 <= seen <= runs or runs < 1:
        raise ValueError(f"{seen} in {runs} is not an observed rate")
    miss = 1 - confidence
    lower = 0.0 if seen == 0 else _rate_at_which_so_many(seen, runs, miss)
    # `seen` or fewer successes are `runs - seen` or more failures.
    upper = 1.0 if seen == runs else 1 - _rate_at_which_so_many(runs - seen, runs, miss)
    return lower, upper


def _rate_at_which_so_many(seen: int, runs: int, probability: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(53):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _so_many_or_more(seen, runs, middle) < probability else (low, middle)
        )
    return (low + high) / 2


def _so_many_or_more(seen: int, runs: int, rate: float) -> float:
    """The binomial distribution's upper tail, term by term: a closed form by way of the incomplete
    beta function does not converge in mpmath at thousands of runs."""
    one, other, all_ways = math.log(rate), math.log1p(-rate), math.lgamma(runs + 1)
    return math.fsum(
        math.exp(
            all_ways
            - math.lgamma(count + 1)
            - math.lgamma(runs - count + 1)
            + count * one
            + (runs - count) * other
        )
        for count in range(seen, runs + 1)
    )
