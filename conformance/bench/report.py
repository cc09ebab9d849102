"""What a benchmark run and a comparison look like: on the terminal, in a pull request, and as a page of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.bench.comparison import Comparison, slowest_first
from conformance.bench.results import Recording

if TYPE_CHECKING:
    from rich.console import Console

    from conformance.bench.history import History
    from conformance.bench.power import Rate


def write_measured(console: Console, recording: Recording) -> None:
    """A line for each benchmark: time, throughput, how near it comes to what the device can do, memory."""
    console.print(headline(recording))
    console.print(
        table(("benchmark", "median", "tokens/s", "of peak", "memory"), shortened(measured_rows(recording)))
    )


def measured_rows(recording: Recording) -> list[tuple[str, ...]]:
    """Cells of :func:`write_measured`, of the first process that measured each benchmark."""
    rows: list[tuple[str, ...]] = []
    for name in recording.names:
        found = next((run.benchmarks[name] for run in recording.runs if name in run.benchmarks), None)
        if found is None:
            rows.append((name, recording.trouble(name) or "not measured", "", "", ""))
            continue
        facts = found.facts
        rows.append(
            (
                name,
                seconds(found.seconds),
                f"{facts['tokens_per_second']:,.0f}",
                _of_peak(facts),
                "" if found.peak_memory is None else size(found.peak_memory),
            )
        )
    return rows


def write_comparison(console: Console, comparison: Comparison) -> None:
    """The verdict, and a line for each benchmark, what fails first."""
    console.print(f"{comparison.result} {comparison.head} against {comparison.base}")
    if comparison.refusal:
        console.print(f"  not compared: {comparison.refusal}")
        return
    rows = compared_rows(comparison)
    told = common([row[0] for row in rows])
    if told:
        console.print(f"  {told}")
    console.print(table(("benchmark", "finding", "head / base", ""), shortened(rows)))


def compared_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (one.name, str(one.finding), "" if one.ratio is None else f"{one.ratio:.3f}", one.why)
        for one in slowest_first(comparison)
    ]


def summary(comparison: Comparison) -> str:
    """Markdown for a pull request or a CI job's summary."""
    lines = [
        f"## {comparison.result.capitalize()}",
        "",
        f"`{comparison.head}` against `{comparison.base}`.",
        "",
    ]
    if comparison.refusal:
        return "\n".join([*lines, f"Not compared: {comparison.refusal}.", ""])
    lines += ["| benchmark | finding | head / base | pairs | |", "|---|---|---|---|---|"]
    for one in slowest_first(comparison):
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
        cells = (f"`{one.name}`", str(one.finding), ratio, str(one.pairs or ""), one.why)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", method(comparison), ""])


def method(comparison: Comparison) -> str:
    """How the verdict was come to, in a few sentences."""
    taken = (
        "of rounds that were timed in turns"
        if comparison.paired
        else "of runs that were not made in turns, so that what changed on the machine between them counts too"
    )
    return (
        f"Slower: a one-sided t test on logarithms {taken}, refuses a slow-down of half a per cent or less, with at most "
        f"{100 * comparison.level:g} % of false alarms over all benchmarks together (Holm). No regression: a slow-down of "
        f"{100 * math.expm1(comparison.detectable):.3g} % is excluded at 95 %; what is neither is inconclusive."
    )


def history_rows(history: History) -> list[tuple[str, ...]]:
    """First and last level of each benchmark, and where it stepped between them."""
    return [
        (
            name,
            str(len(rows)),
            seconds(rows[0]["seconds"]),
            seconds(rows[-1]["seconds"]),
            ", ".join(rows[step]["label"] for step in history.steps[name]) or "none",
        )
        for name, rows in history.rows.items()
    ]


def power_rows(rates: Sequence[Rate]) -> list[tuple[str, ...]]:
    """How often each slow-down was found; in the first row, how often there was none to find."""
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


def write_all(comparison: Comparison, recordings: tuple[Recording, Recording] | None, out: Path) -> list[str]:
    """``verdict.json`` and ``summary.md`` in ``out``; where there are recordings to draw, ``report.html`` and the chart
    ``comparison``, of which none from before stays. Returns the names of what was written."""
    from conformance.bench import charts
    from conformance.bench.page import comparison_page

    out.mkdir(parents=True, exist_ok=True)
    environment = recordings[1].runs[0].environment if recordings else None
    verdict = {**comparison.as_json(), "environment": environment}
    (out / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(summary(comparison), encoding="utf-8")
    written = ["verdict.json", "summary.md"]
    for name in ("report.html", "comparison.png", "comparison.svg"):
        (out / name).unlink(missing_ok=True)
    if recordings:
        (out / "report.html").write_text(comparison_page(comparison, *recordings), encoding="utf-8")
        written.append("report.html")
        if (drawn := charts.ratios(comparison)) is not None:
            written += charts.save(drawn, out, "comparison")
    return written


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A borderless table for the terminal; long names fold, numbers do not."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in head:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def shortened(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows of a table whose first cell is a benchmark, with its short name."""
    short = labels([row[0] for row in rows])
    return [(short[row[0]], *row[1:]) for row in rows]


def labels(names: Sequence[str]) -> dict[str, str]:
    """A short form of each name, where all of them are of one target at one size on one attention: without these."""
    split = {name: name.partition("[") for name in names if "[" in name}
    if len({rest.rsplit("-", 2)[0] for _, _, rest in split.values()}) != 1:
        return {name: name for name in names}
    short = {
        name: " ".join([workload, *rest.rstrip("]").rsplit("-", 2)[1:]])
        for name, (workload, _, rest) in split.items()
    }
    return {name: short.get(name, name) for name in names}


def common(names: Sequence[str]) -> str:
    """What :func:`labels` leave out."""
    short = labels(names)
    return next((name.partition("[")[2].rsplit("-", 2)[0] for name in names if short[name] != name), "")


def headline(recording: Recording) -> str:
    """What all benchmarks have in common, the device, and the software that decides about speed, in a line."""
    environment = recording.runs[0].environment
    device, packages = environment.get("device", {}), environment.get("packages", {})
    software = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)
    return " on ".join(filter(None, [common(recording.names), f"{device.get('name')}, {software}"]))


def seconds(value: float) -> str:
    """Three digits with the unit that fits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size(count: int) -> str:
    """Bytes with a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def _of_peak(facts: Any) -> str:
    """Prefill and training are bound by arithmetic, decoding by bandwidth."""
    if facts["workload"] == "decode":
        share = facts.get("share_of_measured_bandwidth")
        return "" if share is None else f"{100 * share:.0f} % bandwidth"
    share = facts.get("mfu")
    if share is not None:
        return f"{100 * share:.0f} % MFU"
    share = facts.get("share_of_measured_flops")
    return "" if share is None else f"{100 * share:.0f} % FLOP/s"
