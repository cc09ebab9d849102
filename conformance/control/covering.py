"""Covering arrays: rows in which every pair of values of any two factors occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

Row = dict[str, Any]
"""A value for each factor."""
Values = frozenset[tuple[str, Any]]
"""Values of some factors: names and values."""


def covering(
    factors: Mapping[str, tuple[Any, ...]],
    makes_sense: Callable[[Row], bool] = lambda _: True,
    *,
    beside: Iterable[Values] = (),
) -> Iterator[Row]:
    """Rows in which every pair of values of any two factors occurs that can, and each of the values
    `beside`; always the same.

    Greedy: a row begins with a pair that is still missing and takes, factor by factor, the value
    that covers most of the other missing pairs, or was used least (the plainest may be used twice
    as often): what only three values together show may show then too. (`allpairspy` gives up on a
    third of the pairs once some combinations are excluded.)

    Args:
        factors: the values of each factor, the plainest first.
        makes_sense: whether a combination can be asked for; values that are not chosen yet are
            missing from what it is given.
        beside: values of three or more factors that shall occur together.
    """
    missing = {
        frozenset({(one, a), (other, b)})
        for one, other in combinations(factors, 2)
        for a in factors[one]
        for b in factors[other]
        if makes_sense({one: a, other: b})
    } | set(beside)
    sizes = sorted({len(some) for some in missing})
    used: Counter[tuple[str, Any]] = Counter()
    while missing:
        some = max(missing, key=lambda some: sorted(map(str, some)))
        row = _completed(dict(some), factors, makes_sense, missing, used)
        if row is None:  # what it asks for is not among these values
            missing.remove(some)
            continue
        missing -= {frozenset(part) for n in sizes for part in combinations(row.items(), n)}
        used.update(row.items())
        yield {name: row[name] for name in factors}


def _completed(
    row: Row,
    factors: Mapping[str, tuple[Any, ...]],
    makes_sense: Callable[[Row], bool],
    missing: Collection[Values],
    used: Mapping[tuple[str, Any], int],
) -> Row | None:
    """`row` with a value for each factor that has none, chosen as `covering` says; None if there is
    no such row."""
    for name in sorted(factors, key=lambda name: -len(factors[name])):
        if name in row:
            continue
        able = [value for value in factors[name] if makes_sense({**row, name: value})]
        if not able:
            return None
        row[name] = max(
            able, key=lambda value: (
                sum(frozenset({(name, value), item}) in missing for item in row.items()),
                -used[name, value] / (2 if value == factors[name][0] else 1),
            ),
        )  # fmt: skip
    return row


def plainer(row: Row, plainest: Mapping[str, Any], fails: Callable[[Row], bool]) -> Row:
    """`row` with as many values of `plainest` as still fail: a failure is told by what matters."""
    for name, plain in plainest.items():
        if row[name] != plain and fails({**row, name: plain}):
            row = {**row, name: plain}
    return row
