"""Against tables and hand-computed cases; error rates against simulation."""

from __future__ import annotations

import math
import random

import pytest

from conformance.bench.results.statistics import (
    NEGLIGIBLE,
    centre,
    holm,
    pairs_needed,
    slowdown,
    steady_from,
    student_quantile,
    student_tail,
    unpaired_slowdown,
)
from conformance.rates import rate_bounds


@pytest.mark.parametrize(
    ("probability", "degrees", "t"),
    [(0.975, 1, 12.706), (0.95, 5, 2.015), (0.999, 11, 4.025), (0.99, 30, 2.457), (0.5, 7, 0.0)],
)
def test_quantiles_are_those_of_the_printed_tables(
    probability: float, degrees: float, t: float
) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(t, abs=5e-4)
    assert student_tail(t, degrees) == pytest.approx(1 - probability, abs=2e-5)


def test_a_paired_slowdown_by_hand() -> None:
    """Mean 0.04 and deviation 0.02 over four pairs: an error of 0.01, t of (0.04 - 0.01) / 0.01 = 3
    at three degrees."""
    found = slowdown([0.02, 0.06, 0.04 - 0.02 * 0.5**0.5, 0.04 + 0.02 * 0.5**0.5], negligible=0.01)
    assert (found.pairs, found.estimate) == (4, pytest.approx(0.04))
    assert found.deviation == pytest.approx(0.02 * math.sqrt(3 / 3))
    assert found.probability == pytest.approx(
        0.0288, abs=1e-4
    )  # Student's t table: 3.0 at 3 degrees
    assert found.at_most == pytest.approx(0.04 + 2.353 * 0.01, abs=1e-5)


def test_welch_by_hand() -> None:
    """Variances 2e-4 / 2 and 8e-4 / 2, each of one degree: (5e-4)² / (1e-8 + 16e-8) = 1.47
    degrees."""
    found = unpaired_slowdown([0.0, 0.02], [0.03, 0.07], negligible=0.0)
    assert found.estimate == pytest.approx(0.04)
    error = math.sqrt(5e-4)
    assert found.probability == pytest.approx(student_tail(0.04 / error, 25 / 17))


def test_equal_times_are_no_slowdown() -> None:
    assert slowdown([0.0, 0.0, 0.0]).probability == 1.0
    assert slowdown([0.1, 0.1]).probability == 0.0


@pytest.mark.parametrize("logarithms", [[], [0.1]])
def test_one_pair_says_nothing(logarithms: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        slowdown(logarithms)


def test_holm_by_hand() -> None:
    """0.01 of 0.05 / 3, 0.02 of 0.05 / 2, and 0.06 of 0.05: the last stands, and with it nothing
    falls."""
    assert holm({"a": 0.01, "b": 0.06, "c": 0.02}, 0.05) == {"a", "c"}
    assert holm({"a": 0.02, "b": 0.03, "c": 0.9}, 0.05) == set()
    assert holm({}, 0.05) == set()


@pytest.mark.parametrize(
    ("rounds", "steady"),
    [
        ([9.0, 5.0, *[1.0, 1.01] * 10], 2),
        ([1.0, 1.01] * 10, 0),
        ([1.0, 1.01] * 5 + [50.0] + [1.0, 1.01] * 5, 0),
        ([3.0, 1.0], 0),
        ([2.0] * 10 + [1.0] * 10, 10),
    ],
)
def test_where_a_benchmark_runs_steadily(rounds: list[float], steady: int) -> None:
    """Warm-up goes, an interrupted round in the middle is no reason to leave out what was before
    it."""
    assert steady_from(rounds) == steady


@pytest.mark.parametrize(
    ("values", "estimate"),
    # Means of any two of 1, 2, 6: 1, 1.5, 3.5, 2, 4, 6. Two heaps of five, 0 and 1: 30 means of one
    # heap, and 25 of both, a half.
    [([3.0], 3.0), ([1.0, 2.0, 6.0], 2.75), ([0.0, 1.0] * 5, 0.5), ([0.0] * 9 + [1e6], 0.0)],
)
def test_the_centre_by_hand(values: list[float], estimate: float) -> None:
    assert centre(values) == estimate


def test_false_alarms_are_as_rare_as_promised() -> None:
    source = random.Random(1)
    alarms = 0
    for _ in range(4000):
        pairs = [source.gauss(NEGLIGIBLE, 0.02) for _ in range(8)]
        alarms += slowdown(pairs).probability < 0.05
    low, high = rate_bounds(alarms, 4000, 0.999)
    assert low < 0.05 < high


def test_enough_pairs_find_what_they_are_to_find() -> None:
    pairs = pairs_needed(0.02, level=0.01, misses=0.1) or 0
    source = random.Random(2)
    found = sum(
        slowdown([source.gauss(math.log(1.03), 0.02) for _ in range(pairs)]).probability < 0.01
        for _ in range(1000)
    )
    assert 0.87 < found / 1000 < 0.97
    needed = [
        pairs_needed(deviation, benchmarks) or 0
        for deviation, benchmarks in ((0.01, 1), (0.02, 1), (0.02, 6))
    ]
    assert needed == sorted(set(needed))
    assert not any(count % 2 for count in needed), "--pairs takes even numbers"
    assert pairs_needed(5.0) is None
