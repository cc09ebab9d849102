"""Benchmarks over time: stored recordings in the order in which they were made, and where they stepped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from conformance.bench.results import InvalidResults, Recording, read, why_not_comparable

#: A step is told where chance alone would make one as clear in one of a thousand series.
_CHANCE = 0.001
_SHUFFLES = 1999
#: Fewer recordings on one side of a step have no level.
_SHORTEST = 3


@dataclass(frozen=True)
class History:
    """``rows[name]``: label, time and seconds of each recording; ``steps[name]``: the indices at which a new level begins."""

    recordings: tuple[Recording, ...]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    steps: Mapping[str, Sequence[int]]


def history(places: Sequence[Path]) -> History:
    """What lies in ``places``, each a file or folder of results, by the time of its first run.

    Raises:
        InvalidResults: naming what is no result of ours.
    """
    labels = {place: place.stem if place.suffix == ".json" else place.name for place in places}
    recordings = sorted(
        (read(place, labels[place]) for place in places), key=lambda one: one.runs[0].recorded
    )
    first = recordings[0]
    for other in recordings[1:]:
        refusal = why_not_comparable(first, other, allow_environment_change=True)
        if refusal:
            raise InvalidResults(f"{other.label} and {first.label} make no history: {refusal}")
    names = dict.fromkeys(name for recording in recordings for name in recording.names)
    rows = {name: _rows(recordings, name) for name in names}
    rows = {name: found for name, found in rows.items() if found}
    return History(
        tuple(recordings),
        rows,
        {name: steps([math.log(row["seconds"]) for row in found]) for name, found in rows.items()},
    )


def steps(levels: Sequence[float]) -> list[int]:
    """Where a series steps to another level: the stretch that stands out most, if shuffling the series hardly ever gives one
    that stands out as much, and the same within what is before, in and behind it (circular binary segmentation, Olshen
    et al., Biostatistics 5, 2004)."""
    return sorted(_steps(np.asarray(levels, dtype=np.float64), 0, np.random.default_rng(0)))


def _steps(levels: Any, offset: int, source: Any) -> list[int]:
    if len(levels) < 2 * _SHORTEST:
        return []
    clearest, begin, end = _clearest(levels)
    reached = 1
    for _ in range(_SHUFFLES):
        reached += _clearest(source.permutation(levels))[0] >= clearest
        if reached > _CHANCE * (_SHUFFLES + 1):
            return []
    borders = [0, *(place for place in (begin, end) if 0 < place < len(levels)), len(levels)]
    within = [step for a, b in pairwise(borders) for step in _steps(levels[a:b], offset + a, source)]
    return [*(offset + place for place in borders[1:-1]), *within]


def _clearest(levels: Any) -> tuple[float, int, int]:
    """How far the stretch that stands out most lies from the rest, in what chance would give, and where it begins and ends."""
    count = len(levels)
    sums = np.concatenate([[0.0], np.cumsum(levels)])
    begin, end = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
    inside, outside = end - begin, count - (end - begin)
    long_enough = (
        (inside >= _SHORTEST)
        & (outside >= _SHORTEST)
        & ((begin == 0) | (begin >= _SHORTEST))
        & ((end == count) | (count - end >= _SHORTEST))
    )
    inside, outside = np.maximum(inside, 1), np.maximum(outside, 1)
    total = sums[end] - sums[begin]
    apart = np.abs(total / inside - (sums[-1] - total) / outside) * np.sqrt(inside * outside / count)
    best = np.where(long_enough, apart, -1.0)
    where = np.unravel_index(int(best.argmax()), best.shape)
    return float(best[where]), int(where[0]), int(where[1])


def _rows(recordings: Sequence[Recording], name: str) -> list[dict[str, Any]]:
    rows = []
    for recording in recordings:
        seconds = [value for value in recording.seconds(name) if value]
        if seconds:
            rows.append(
                {
                    "label": recording.label,
                    "recorded": recording.runs[0].recorded,
                    "seconds": math.exp(statistics.fmean(math.log(value) for value in seconds)),
                    "peak_memory_bytes": recording.peak_memory(name),
                    "runs": len(seconds),
                }
            )
    return rows
