"""Cells of the tables in terminals and pages, and the headline above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from conformance.bench.points import common_setting, labels
from conformance.bench.results.comparison import (
    NO_REGRESSION,
    REGRESSION,
    Compared,
    Comparison,
    needs_more_memory,
    slowest_first,
)
from conformance.bench.results.stored import Recording
from conformance.bench.units import seconds, size

if TYPE_CHECKING:
    from conformance.bench.results.drawing import Rate
    from conformance.bench.results.history import History


def measured_rows(recording: Recording) -> list[tuple[str, ...]]:
    """Time, throughput, share of the device's peak, and memory of each benchmark, from the typical
    process."""
    short = labels(recording.names)
    rows: list[tuple[str, ...]] = []
    for name in recording.names:
        found, peak = recording.typical_benchmark(name), recording.peak_memory(name)
        if found is None:
            rows.append((short[name], recording.trouble(name) or "not measured", "", "", ""))
            continue
        throughput = f"{found.facts['tokens_per_second']:,.0f}"
        share = _of_peak(found.facts, recording.ceilings)
        memory = "" if peak is None else size(peak)
        rows.append((short[name], seconds(found.seconds), throughput, share, memory))
    return rows


class ComparedRow(NamedTuple):
    """What is said of one benchmark: of its time and of its memory, each with the exit status that
    it would have by itself."""

    benchmark: str
    time: str
    time_status: int
    ratio: str
    at_most: str
    memory: str
    memory_status: int
    why: str
    status: int


def compared_rows(comparison: Comparison) -> list[ComparedRow]:
    """The findings on each benchmark, failures first."""
    short = labels([one.name for one in comparison.benchmarks])
    return [
        ComparedRow(
            short[one.name],
            time := one.time or one.finding,
            time.exit_status,
            "" if one.ratio is None else f"{one.ratio:.3f}",
            "" if one.at_most is None else f"{100 * (one.at_most - 1):+.1f} %",
            memory_change(one),
            REGRESSION if needs_more_memory(one) else NO_REGRESSION,
            one.why,
            one.finding.exit_status,
        )
        for one in slowest_first(comparison)
    ]


def memory_change(one: Compared) -> str:
    """Head's peak memory, and its change from base."""
    if one.head_bytes is None or one.base_bytes is None:
        return ""
    more = 100 * (one.head_bytes - one.base_bytes) / max(one.base_bytes, 1)
    return size(one.head_bytes) + (f" ({more:+.1f} %)" if more else "")


def history_rows(history: History) -> list[tuple[str, ...]]:
    """First and last level of each benchmark, and where it stepped between them."""
    from conformance.bench.results.history import SHORTEST_HISTORY

    short = labels(list(history.rows))
    rows: list[tuple[str, ...]] = []
    for name, own in history.rows.items():
        time, memory = (
            ", ".join(own[step]["label"] for step in steps[name])
            for steps in (history.steps, history.memory_steps)
        )
        if not time and len(own) < SHORTEST_HISTORY:
            time = f"too few to tell ({SHORTEST_HISTORY})"
        first, last = seconds(own[0]["seconds"]), seconds(own[-1]["seconds"])
        rows.append((short[name], str(len(own)), first, last, time or "none", memory or "none"))
    return rows


def power_rows(rates: Sequence[Rate]) -> list[tuple[str, ...]]:
    """How often each slow-down was found; the first row, without one, shows false alarms."""
    short = labels([rate.benchmark for rate in rates])
    return [
        (
            short[rate.benchmark],
            f"{100 * rate.slowdown:g} %",
            f"{100 * rate.measured:.1f} %",
            f"{100 * rate.deviation:.1f} %",
            f"{100 * rate.found:.1f} %",
            f"{100 * rate.at_least:.1f}–{100 * rate.at_most:.1f} %",
        )
        for rate in rates
    ]


def headline(recording: Recording) -> str:
    """The setting that all benchmarks share, the device, and the software that affects speed, in a
    line."""
    environment = recording.runs[0].environment
    device, packages = environment.get("device", {}), environment.get("packages", {})
    software = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages
    )
    on = f"{device.get('name')}, {software}"
    return " on ".join(filter(None, [common_setting(recording.names), on]))


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
