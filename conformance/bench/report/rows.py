"""Cells of the tables in terminals and pages, and the headline above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conformance.bench.points import common_setting, labels
from conformance.bench.results.comparison import Compared, Comparison, slowest_first
from conformance.bench.results.stored import Recording
from conformance.bench.units import seconds, size

if TYPE_CHECKING:
    from conformance.bench.results.drawing import Rate
    from conformance.bench.results.history import History


def measured_rows(recording: Recording) -> list[tuple[str, ...]]:
    """The cells of `write_measured`, from the typical process."""
    ceilings = recording.ceilings
    rows: list[tuple[str, ...]] = []
    for name in recording.names:
        found = recording.typical_benchmark(name)
        if found is None:
            rows.append((name, recording.trouble(name) or "not measured", "", "", ""))
            continue
        peak = recording.peak_memory(name)
        rows.append(
            (
                name,
                seconds(found.seconds),
                f"{found.facts['tokens_per_second']:,.0f}",
                _of_peak(found.facts, ceilings),
                "" if peak is None else size(peak),
            )
        )
    return rows


def compared_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (one.name, str(one.finding), "" if one.ratio is None else f"{one.ratio:.3f}", one.why)
        for one in slowest_first(comparison)
    ]


def memory_change(one: Compared) -> str:
    """Head's peak memory, and its change from base."""
    if one.head_bytes is None or one.base_bytes is None:
        return ""
    more = one.head_bytes - one.base_bytes
    return (
        f"{size(one.head_bytes)} ({100 * more / max(one.base_bytes, 1):+.1f} %)"
        if more
        else size(one.head_bytes)
    )


def history_rows(history: History) -> list[tuple[str, ...]]:
    """First and last level of each benchmark, and where it stepped between them."""
    from conformance.bench.results.history import SHORTEST_HISTORY

    return [
        (
            name,
            str(len(rows)),
            seconds(rows[0]["seconds"]),
            seconds(rows[-1]["seconds"]),
            ", ".join(rows[step]["label"] for step in history.steps[name])
            or (
                "none" if len(rows) >= SHORTEST_HISTORY else f"too few to tell ({SHORTEST_HISTORY})"
            ),
            ", ".join(rows[step]["label"] for step in history.memory_steps[name]) or "none",
        )
        for name, rows in history.rows.items()
    ]


def power_rows(rates: Sequence[Rate]) -> list[tuple[str, ...]]:
    """How often each slow-down was found; the first row, without one, shows false alarms."""
    return [
        (
            rate.benchmark,
            f"{100 * rate.slowdown:g} %",
            f"{100 * rate.measured:.1f} %",
            f"{100 * rate.deviation:.1f} %",
            f"{100 * rate.found:.1f} %",
            f"{100 * rate.at_least:.1f}–{100 * rate.at_most:.1f} %",
        )
        for rate in rates
    ]


def shortened(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows of a table whose first cell is a benchmark, with its short name."""
    short = labels([row[0] for row in rows])
    return [(short[row[0]], *row[1:]) for row in rows]


def headline(recording: Recording) -> str:
    """The setting that all benchmarks share, the device, and the software that affects speed, in a
    line."""
    environment = recording.runs[0].environment
    device, packages = environment.get("device", {}), environment.get("packages", {})
    software = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages
    )
    return " on ".join(
        filter(None, [common_setting(recording.names), f"{device.get('name')}, {software}"])
    )


def _of_peak(facts: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    """The share of the ceiling: prefill and training are bound by arithmetic, decoding by
    bandwidth."""
    if facts["workload"] == "decode":
        return _share(facts.get("bytes_per_second"), ceilings.get("bytes_per_second"), "bandwidth")
    if facts.get("mfu") is not None:
        return f"{100 * facts['mfu']:.0f} % MFU"
    return _share(facts["flops_per_second"], ceilings.get("flops"), "FLOP/s")


def _share(reached: float | None, ceiling: float | None, what: str) -> str:
    return f"{100 * reached / ceiling:.0f} % {what}" if reached and ceiling else ""
