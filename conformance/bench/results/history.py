"""Benchmarks over time: stored recordings in the order they were made, and the steps between
them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from conformance.bench.results.comparable import why_not_comparable
from conformance.bench.results.comparison import MEMORY_SLACK
from conformance.bench.results.statistics import student_tail
from conformance.bench.results.stored import InvalidResults, Recording, read

_CHANCE = 0.001
"""A step is reported if chance alone would make one as clear in at most one of a thousand
series."""
_SHORTEST = 3
"""Fewer recordings on one side of a step have no level."""
_FINEST = 1e-6
"""A millionth of a time: no clock and no machine repeats a time so closely."""
SHORTEST_HISTORY = 2 * _SHORTEST


@dataclass(frozen=True)
class History:
    """`rows[name]`: label, time, seconds and peak memory of each recording; `steps[name]` and
    `memory_steps[name]`: the indices at which a new level of time, or of memory, begins."""

    recordings: tuple[Recording, ...]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    steps: Mapping[str, Sequence[int]]
    memory_steps: Mapping[str, Sequence[int]]


def history(places: Sequence[Path]) -> History:
    """The recordings in `places`, each a file or folder of results, by the time of their first run.

    Raises:
        InvalidResults: if one is not a result of ours, or cannot be compared with the first.
    """
    labels = _labels(places)
    recordings = sorted(
        (read(place, labels[place]) for place in places), key=lambda one: one.runs[0].recorded
    )
    first = recordings[0]
    for other in recordings[1:]:
        refusal = why_not_comparable(first, other, allow_environment_change=True)
        if refusal:
            raise InvalidResults(f"{other.label} and {first.label} share no history: {refusal}")
    names = dict.fromkeys(name for recording in recordings for name in recording.names)
    rows = {name: found for name in names if (found := _rows(recordings, name))}
    return History(
        tuple(recordings),
        rows,
        {name: steps([math.log(row["seconds"]) for row in found]) for name, found in rows.items()},
        {name: _memory_steps(found) for name, found in rows.items()},
    )


def steps(levels: Sequence[float]) -> list[int]:
    """Where a series steps to another level (circular binary segmentation, Olshen et al.,
    Biostatistics 5, 2004).

    The stretch that stands out most gives steps if chance hardly ever makes one as clear; the
    search then goes on before, within and after it. The probability comes from Student's t test
    between the stretch and the rest, times the number of stretches (Bonferroni): shuffling, as in
    that paper, cannot decide on a dozen recordings.
    """
    return sorted(_steps(np.asarray(levels, dtype=np.float64), 0))


def _steps(levels: Any, offset: int) -> list[int]:
    if len(levels) < SHORTEST_HISTORY:
        return []
    begin, end, chance = _clearest(levels)
    if chance > _CHANCE:
        return []
    borders = [0, *(place for place in (begin, end) if 0 < place < len(levels)), len(levels)]
    within = [step for a, b in pairwise(borders) for step in _steps(levels[a:b], offset + a)]
    return [*(offset + place for place in borders[1:-1]), *within]


def _clearest(levels: Any) -> tuple[int, int, float]:
    """The beginning and end of the stretch that stands out most, and its probability by chance."""
    count = len(levels)
    levels = levels - levels.mean()
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
    # The part of the sum of squares about the mean that the two levels account for.
    squares = (sums[end] - sums[begin]) ** 2 * count / (inside * outside)
    between = np.where(long_enough, squares, 0.0)
    where = np.unravel_index(int(between.argmax()), between.shape)
    told = float(between[where])
    # Differences finer than this do not count: recordings that are all the same have no steps.
    left = max(float((levels**2).sum()) - told, count * _FINEST**2)
    degrees = count - 2
    t = math.sqrt(told / (left / degrees))
    # A stretch from the beginning and the one after it give the same two levels, and both are
    # counted.
    chance = 2 * student_tail(t, degrees) * int(long_enough.sum())
    return int(where[0]), int(where[1]), chance


def _memory_steps(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Memory is counted, not sampled: a change of more than `MEMORY_SLACK` from the level so far is
    a step."""
    found: list[int] = []
    level = None
    for place, row in enumerate(rows):
        peak = row["peak_memory_bytes"]
        if peak is not None and (level is None or abs(peak - level) > level * MEMORY_SLACK):
            found += [place] if level is not None else []
            level = peak
    return found


def _labels(places: Sequence[Path]) -> dict[Path, str]:
    """The end of each path, just long enough to tell the places apart."""
    parts = {
        place: (*place.resolve().parent.parts[1:], place.name.removesuffix(".json"))
        for place in places
    }
    for length in range(1, max(map(len, parts.values())) + 1):
        labels = {place: "/".join(own[-length:]) for place, own in parts.items()}
        if len({*labels.values()}) == len(labels):
            break
    return labels


def _rows(recordings: Sequence[Recording], name: str) -> list[dict[str, Any]]:
    return [
        {
            "label": recording.label,
            "recorded": recording.runs[0].recorded,
            "seconds": math.exp(statistics.fmean(math.log(one.seconds) for one in measured)),
            "peak_memory_bytes": recording.peak_memory(name),
            "runs": len(measured),
        }
        for recording in recordings
        if (measured := recording.measured(name))
    ]
