"""A covering array covers what it says, of any factors."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from conformance.control import covering, plainer

FACTORS = {"shape": ("round", "square"), "size": (1, 2, 3), "colour": ("red", "blue")}


def _makes_sense(row: dict[str, Any]) -> bool:
    return not (row.get("shape") == "round" and row.get("size") == 3)


def test_every_pair_that_makes_sense_occurs() -> None:
    rows = list(covering(FACTORS, _makes_sense))
    seen = {frozenset(pair) for row in rows for pair in combinations(row.items(), 2)}
    wanted = {
        frozenset({(one, a), (other, b)})
        for one, other in combinations(FACTORS, 2)
        for a in FACTORS[one]
        for b in FACTORS[other]
        if _makes_sense({one: a, other: b})
    }
    assert wanted <= seen
    assert all(map(_makes_sense, rows))
    assert rows == list(covering(FACTORS, _makes_sense))


def test_what_is_asked_for_beside_pairs_occurs() -> None:
    three = frozenset({("shape", "square"), ("size", 3), ("colour", "blue")})
    assert any(three <= row.items() for row in covering(FACTORS, beside=[three]))


def test_a_value_that_nothing_goes_with_is_passed_over() -> None:
    rows = list(covering({**FACTORS, "shape": ("round",)}, _makes_sense))
    assert {row["size"] for row in rows} == {1, 2}


def test_a_failure_is_told_by_what_matters() -> None:
    plainest = {name: values[0] for name, values in FACTORS.items()}
    row = {"shape": "square", "size": 3, "colour": "blue"}
    assert plainer(row, plainest, lambda row: row["size"] > 1) == {**plainest, "size": 3}
