"""Charts for a pull request, drawn by matplotlib: as files, and as SVGs inside a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from conformance.bench.points import Point, labels
from conformance.bench.results.comparison import Comparison, Finding, pairs_of, slowest_first
from conformance.bench.results.stored import Recording

BASE, HEAD, BAD, OPEN, FAINT = "#64748b", "#2563eb", "#c2410c", "#a16207", "#94a3b8"
_TOLD = {Finding.SLOWER: BAD, Finding.INCONCLUSIVE: OPEN}
"""Colours of findings on time; a finding on memory does not colour a time."""
_STYLE: Any = {
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1,
    "lines.markersize": 3,
    "svg.fonttype": "none",
    "svg.hashsalt": "conformance",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
"""How every chart looks unless it says otherwise. Text in an SVG stays text."""
_ROW = 0.42
_NAME_LENGTH, _NAMES_LENGTH = 20, 90
"""The most letters of one name, and of all names together, below a history chart."""


@rc_context(_STYLE)
def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element whose text stays text."""
    out = io.StringIO()
    # Without metadata, the same figure is the same text each time.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", bbox_inches="tight", metadata=nothing)
    text = out.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, out: Path, name: str) -> list[str]:
    """Write `name.png` and `name.svg` to `out`, and return their names."""
    (out / f"{name}.svg").write_text(as_svg(figure), encoding="utf-8")
    figure.savefig(out / f"{name}.png", bbox_inches="tight", dpi=144)
    return [f"{name}.png", f"{name}.svg"]


@rc_context(_STYLE)
def ratios(comparison: Comparison) -> Figure | None:
    """Head over base for each benchmark, in the order of the table, with its upper bound, and the
    slow-down that must be excluded."""
    compared = [one for one in reversed(slowest_first(comparison)) if one.ratio is not None]
    if not compared:
        return None
    figure = Figure(figsize=(7.5, 1.0 + _ROW * len(compared)))
    axes = figure.subplots()
    for row, one in enumerate(compared):
        ratio, at_most = (100 * ((value or 1.0) - 1) for value in (one.ratio, one.at_most))
        colour = _TOLD.get(one.time or one.finding, HEAD)
        axes.plot([ratio - (at_most - ratio), at_most], [row, row], color=colour, linewidth=2)
        axes.plot([ratio], [row], "o", color=colour, markersize=5)
    axes.axvline(0, color=FAINT)
    axes.axvline(100 * math.expm1(comparison.detectable), color=BAD, linestyle=":")
    short = labels([one.name for one in compared])
    told = [
        short[one.name] if one.time in (None, Finding.SAME) else f"{short[one.name]}: {one.time}"
        for one in compared
    ]
    axes.set_yticks(range(len(compared)), told)
    axes.set(xlabel="change in time from base to head, %", ylim=(-0.6, len(compared) - 0.4))
    return figure


@rc_context(_STYLE)
def distributions(name: str, base: Recording, head: Recording, *, paired: bool) -> Figure | None:
    """The ratio of each pair (the median of each process if they are not paired), and all
    rounds."""
    sides = ((base, BASE), (head, HEAD))
    if not all(any(recording.seconds(name)) for recording, _ in sides):
        return None
    figure = Figure(figsize=(7.5, 1.9))
    processes, rounds = figure.subplots(1, 2)
    if paired:
        told = [100 * math.expm1(pair.logarithm) for pair in pairs_of(base, head, name)]
        processes.plot(range(1, len(told) + 1), told, "o", color=HEAD)
        processes.axhline(0, color=FAINT)
        processes.set(xlabel="pair", ylabel="head over base, %")
    else:
        for recording, colour in sides:
            medians = [1e3 * value if value else math.nan for value in recording.seconds(name)]
            processes.plot(range(1, len(medians) + 1), medians, "o-", color=colour)
        processes.set(xlabel="process", ylabel="median, ms")
    for recording, colour in sides:
        every = sorted(1e3 * value for one in recording.measured(name) for value in one.rounds)
        # One round that the machine interrupted would leave the others no room.
        shown = every[: max(1, int(0.99 * len(every)))]
        rounds.hist(shown, bins=40, histtype="step", color=colour, density=True)
    processes.xaxis.get_major_locator().set_params(integer=True)
    rounds.set(xlabel="rounds, ms", yticks=[])
    return figure


@rc_context(_STYLE)
def roofline(recording: Recording) -> Figure | None:
    """What each benchmark achieves, beside the device's measured ceilings."""
    ceilings = recording.ceilings
    typical = {name: recording.typical_benchmark(name) for name in recording.names}
    found = {name: one.facts for name, one in typical.items() if one is not None}
    if not found or not {"flops", "bytes_per_second"} <= ceilings.keys():
        return None
    figure = Figure(figsize=(7.5, 3.6))
    axes = figure.subplots()
    peak, bandwidth = ceilings["flops"], ceilings["bytes_per_second"]
    ridge = peak / bandwidth
    intensities = [facts["flops"] / facts["bytes_read"] for facts in found.values()]
    ends = min(*intensities, ridge) / 4, max(*intensities, ridge) * 4
    line = [ends[0] * bandwidth, peak, peak]
    axes.loglog([ends[0], ridge, ends[1]], line, color=BASE, linewidth=1.5)
    for (name, facts), intensity in zip(found.items(), intensities, strict=True):
        place, point = (intensity, facts["flops_per_second"]), Point.parse(name)
        label = f"{point.short} {point.target.partition('-')[0]}" if point else name
        axes.plot(*place, "o", color=HEAD, markersize=5)
        axes.annotate(label, place, textcoords="offset points", xytext=(5, -9), fontsize=7)
    # Names stand below their points.
    axes.set_ylim(bottom=axes.get_ylim()[0] / 2)
    axes.set(xlabel="FLOPs for each byte of weights and cache read", ylabel="FLOP/s")
    return figure


@rc_context({**_STYLE, "xtick.labelsize": 7})
def history(
    rows: Sequence[Mapping[str, Any]], steps: Sequence[int], memory_steps: Sequence[int]
) -> Figure:
    """One benchmark over time: the median and the peak memory of each recording, and their
    steps."""
    figure = Figure(figsize=(7.5, 1.9))
    time, memory = figure.subplots(1, 2)
    peaks = [row["peak_memory_bytes"] for row in rows]
    time.plot([1e3 * row["seconds"] for row in rows], "o-", color=HEAD)
    memory.plot([math.nan if peak is None else peak / 1e6 for peak in peaks], "o-", color=HEAD)
    time.set_ylabel("median, ms")
    memory.set_ylabel("peak memory, MB")
    # With many recordings or long names, only some names have room.
    names = [row["label"][-_NAME_LENGTH:] for row in rows]
    shown = range(0, len(rows), math.ceil(len(rows) * max(map(len, names)) / _NAMES_LENGTH))
    for axes, own in ((time, steps), (memory, memory_steps)):
        for step in own:
            axes.axvline(step - 0.5, color=BAD, linestyle=":")
        axes.set_xticks(shown, [names[number] for number in shown], rotation=30, ha="right")
        axes.ticklabel_format(axis="y", useOffset=False)
    figure.tight_layout()
    return figure


@rc_context({**_STYLE, "lines.linewidth": 1.2, "lines.markersize": 4})
def power_curve(rates: Sequence[Mapping[str, Any]]) -> Figure:
    """How often slow-downs of each measured size are found, with Clopper and Pearson's bounds."""
    figure = Figure(figsize=(6.0, 3.2))
    axes = figure.subplots()
    for benchmark in dict.fromkeys(row["benchmark"] for row in rates):
        own = sorted(
            (row for row in rates if row["benchmark"] == benchmark), key=lambda row: row["slowdown"]
        )
        x, found, at_least, at_most = (
            100 * np.array([row[key] for row in own])
            for key in ("measured", "found", "at_least", "at_most")
        )
        point, bounds = Point.parse(benchmark), [*map(list, (found - at_least, at_most - found))]
        axes.errorbar(
            x, found, bounds, marker="o", capsize=3,
            label=point.workload if point else benchmark,
        )  # fmt: skip
    axes.axhline(95, color=FAINT, linewidth=1, linestyle=":")
    axes.set(
        xlabel="slow-down as measured, %", ylabel="comparisons that find it, %", ylim=(-3, 103)
    )
    axes.legend()
    return figure
