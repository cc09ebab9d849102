"""Charts for a pull request, drawn by matplotlib: as files, and as SVGs inside a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.bench.points import Point, labels
from conformance.bench.results.comparison import Comparison, Finding, pairs_of
from conformance.bench.results.stored import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASE, _HEAD, _BAD, _OPEN, _FAINT = "#64748b", "#2563eb", "#c2410c", "#a16207", "#94a3b8"
_TOLD = {Finding.SLOWER: _BAD, Finding.INCONCLUSIVE: _OPEN}
"""Colours of findings on time; a finding on memory does not colour a time."""
_ROW = 0.42
_NAME_LENGTH, _NAMES_LENGTH = 20, 90
"""The most letters of one name, and of all names together, below a history chart."""


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element whose text stays text."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "conformance"}):
        figure.savefig(
            out,
            format="svg",
            bbox_inches="tight",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = out.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, out: Path, name: str) -> list[str]:
    """Write `name.png` and `name.svg` to `out`, and return their names."""
    (out / f"{name}.svg").write_text(as_svg(figure), encoding="utf-8")
    figure.savefig(out / f"{name}.png", bbox_inches="tight", dpi=144)
    return [f"{name}.png", f"{name}.svg"]


def ratios(comparison: Comparison) -> Figure | None:
    """Head over base for each benchmark, with its upper bound, and the slow-down that must be
    excluded."""
    compared = [one for one in comparison.benchmarks if one.ratio is not None]
    if not compared:
        return None
    figure, axes = _figure(7.5, 1.0 + _ROW * len(compared))
    short = labels([one.name for one in compared])
    for row, one in enumerate(reversed(compared)):
        ratio, at_most = _percent(one.ratio), _percent(one.at_most)
        colour = _TOLD.get(one.finding, _HEAD)
        axes.plot([ratio - (at_most - ratio), at_most], [row, row], color=colour, linewidth=2)
        axes.plot([ratio], [row], "o", color=colour, markersize=5)
    axes.axvline(0, color=_FAINT, linewidth=1)
    axes.axvline(100 * math.expm1(comparison.detectable), color=_BAD, linewidth=1, linestyle=":")
    told = [
        short[one.name] if one.finding is Finding.SAME else f"{short[one.name]}: {one.finding}"
        for one in reversed(compared)
    ]
    axes.set_yticks(range(len(compared)), told, fontsize=8)
    axes.set_xlabel("change in time from base to head, %", fontsize=8)
    axes.set_ylim(-0.6, len(compared) - 0.4)
    return figure


def distributions(name: str, base: Recording, head: Recording, *, paired: bool) -> Figure | None:
    """The ratio of each pair (the median of each process if they are not paired), and all
    rounds."""
    sides = [(recording, colour) for recording, colour in ((base, _BASE), (head, _HEAD))]
    if not all(any(recording.seconds(name)) for recording, _ in sides):
        return None
    figure, (processes, rounds) = _figure(7.5, 1.9, columns=2)
    if paired:
        told = [100 * math.expm1(pair.logarithm) for pair in pairs_of(base, head, name)]
        processes.plot(range(1, len(told) + 1), told, "o", color=_HEAD, markersize=3)
        processes.axhline(0, color=_FAINT, linewidth=1)
        processes.set_xlabel("pair", fontsize=8)
        processes.set_ylabel("head over base, %", fontsize=8)
    else:
        for recording, colour in sides:
            medians = [1e3 * value if value else math.nan for value in recording.seconds(name)]
            processes.plot(
                range(1, len(medians) + 1), medians, "o-", color=colour, markersize=3, linewidth=1
            )
        processes.set_xlabel("process", fontsize=8)
        processes.set_ylabel("median, ms", fontsize=8)
    for recording, colour in sides:
        every = sorted(
            1e3 * value
            for run in recording.runs
            if name in run.benchmarks
            for value in run.benchmarks[name].rounds
        )
        # One round that the machine interrupted would leave the others no room.
        shown = every[: max(1, int(0.99 * len(every)))]
        rounds.hist(shown, bins=40, histtype="step", color=colour, density=True)
    processes.xaxis.get_major_locator().set_params(integer=True)
    rounds.set_xlabel("rounds, ms", fontsize=8)
    rounds.set_yticks([])
    return figure


def roofline(recording: Recording) -> Figure | None:
    """What each benchmark achieves, beside the device's measured ceilings."""
    ceilings = recording.ceilings
    found = {
        name: one
        for name in recording.names
        if (one := recording.typical_benchmark(name)) is not None
    }
    if not found or not {"flops", "bytes_per_second"} <= ceilings.keys():
        return None
    figure, axes = _figure(7.5, 3.6)
    peak, bandwidth = ceilings["flops"], ceilings["bytes_per_second"]
    intensities = [one.facts["flops"] / one.facts["bytes_read"] for one in found.values()]
    ends = min(*intensities, peak / bandwidth) / 4, max(*intensities, peak / bandwidth) * 4
    axes.plot(
        [ends[0], peak / bandwidth, ends[1]],
        [ends[0] * bandwidth, peak, peak],
        color=_BASE,
        linewidth=1.5,
    )
    for (name, one), intensity in zip(found.items(), intensities, strict=True):
        axes.plot([intensity], [one.facts["flops_per_second"]], "o", color=_HEAD, markersize=5)
        axes.annotate(
            _in_roofline(name),
            (intensity, one.facts["flops_per_second"]), textcoords="offset points", xytext=(5, -9),
            fontsize=7,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Names stand below their points.
    axes.set_ylim(bottom=axes.get_ylim()[0] / 2)
    axes.set_xlabel("FLOPs for each byte of weights and cache read")
    axes.set_ylabel("FLOP/s")
    return figure


def history(
    rows: Sequence[Mapping[str, Any]], steps: Sequence[int], memory_steps: Sequence[int]
) -> Figure:
    """One benchmark over time: the median and the peak memory of each recording, and their
    steps."""
    figure, (time, memory) = _figure(7.5, 1.9, columns=2)
    time.plot([1e3 * row["seconds"] for row in rows], "o-", color=_HEAD, markersize=3, linewidth=1)
    for axes, own in ((time, steps), (memory, memory_steps)):
        for step in own:
            axes.axvline(step - 0.5, color=_BAD, linewidth=1, linestyle=":")
    time.set_ylabel("median, ms", fontsize=8)
    peaks = [
        math.nan if row["peak_memory_bytes"] is None else row["peak_memory_bytes"] / 1e6
        for row in rows
    ]
    memory.plot(peaks, "o-", color=_HEAD, markersize=3, linewidth=1)
    memory.set_ylabel("peak memory, MB", fontsize=8)
    # With many recordings or long names, only some names have room.
    names = [row["label"][-_NAME_LENGTH:] for row in rows]
    shown = range(0, len(rows), math.ceil(len(rows) * max(map(len, names)) / _NAMES_LENGTH))
    for axes in (time, memory):
        axes.set_xticks(
            shown, [names[number] for number in shown], fontsize=7, rotation=30, ha="right"
        )
        axes.ticklabel_format(axis="y", useOffset=False)
    figure.tight_layout()
    return figure


def power_curve(rates: Sequence[Mapping[str, Any]]) -> Figure:
    """How often slow-downs of each measured size are found, with Clopper and Pearson's bounds."""
    figure, axes = _figure(6.0, 3.2)
    for benchmark in dict.fromkeys(row["benchmark"] for row in rates):
        own = sorted(
            (row for row in rates if row["benchmark"] == benchmark), key=lambda row: row["slowdown"]
        )
        x, y = ([100 * row[key] for row in own] for key in ("measured", "found"))
        bounds = [
            [100 * (row["found"] - row["at_least"]) for row in own],
            [100 * (row["at_most"] - row["found"]) for row in own],
        ]
        axes.errorbar(
            x,
            y,
            yerr=bounds,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=_workload(benchmark),
        )
    axes.axhline(95, color=_FAINT, linewidth=1, linestyle=":")
    axes.set_xlabel("slow-down as measured, %")
    axes.set_ylabel("comparisons that find it, %")
    axes.set_ylim(-3, 103)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(1, columns)
    for one in axes if columns > 1 else [axes]:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
    return figure, axes


def _in_roofline(name: str) -> str:
    point = Point.parse(name)
    return name if point is None else f"{point.short} {point.target.partition('-')[0]}"


def _workload(name: str) -> str:
    point = Point.parse(name)
    return name if point is None else point.workload


def _percent(ratio: float | None) -> float:
    return 100 * ((ratio or 1.0) - 1)
