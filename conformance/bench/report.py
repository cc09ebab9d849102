"""What a benchmark run and a comparison look like: on the terminal, in a pull request, and as a page of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.bench.comparison import Compared, Comparison, slowest_first
from conformance.bench.results import VERDICT, Recording
from conformance.bench.units import seconds, size

if TYPE_CHECKING:
    from rich.console import Console

    from conformance.bench.history import History
    from conformance.bench.power import Rate


#: The name of a benchmark: workload, target, size and attention, batch, tokens.
_NAME = re.compile(r"(?P<workload>\w+)\[(?P<common>.*)-(?P<batch>b\d+)-(?P<tokens>s\d+)\]", re.DOTALL)


def write_measured(console: Console, recording: Recording) -> None:
    """A line for each benchmark: time, throughput, how near it comes to what the device can do, memory."""
    console.print(headline(recording))
    console.print(
        table(("benchmark", "median", "tokens/s", "of peak", "memory"), shortened(measured_rows(recording)))
    )


def measured_rows(recording: Recording) -> list[tuple[str, ...]]:
    """Cells of :func:`write_measured`, of the typical process."""
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


def summary(comparison: Comparison, headline: str = "") -> str:
    """Markdown for a pull request or a CI job's summary; ``headline`` says what of and on which device it was taken."""
    lines = [
        f"## {comparison.result.capitalize()}",
        "",
        f"`{comparison.head}` against `{comparison.base}`.",
        "",
    ]
    if comparison.refusal:
        return "\n".join([*lines, f"Not compared: {comparison.refusal}.", ""])
    order = list(slowest_first(comparison))
    short = labels([one.name for one in order])
    head = ("benchmark", "finding", "base", "head", "time, head / base", "peak memory", "why")
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one in order:
        times = ["" if value is None else seconds(value) for value in (one.base_seconds, one.head_seconds)]
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
        cells = (f"`{short[one.name]}`", str(one.finding), *times, ratio, memory_change(one), one.why)
        # What a process last said has lines of its own, which would end the row.
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    told = [f"Taken on {headline}."] if headline else []
    if comparison.environment_change:
        told.append(f"The software changed beside the code: {comparison.environment_change}.")
    how = f"<details><summary>How this is decided</summary>\n\n{method(comparison)}\n</details>"
    return "\n".join([*lines, "", *told, "", how, ""])


def memory_change(one: Compared) -> str:
    """What head needs at the peak, and how much that is more or less."""
    if one.head_bytes is None or one.base_bytes is None:
        return ""
    more = one.head_bytes - one.base_bytes
    return (
        f"{size(one.head_bytes)} ({100 * more / max(one.base_bytes, 1):+.1f} %)"
        if more
        else size(one.head_bytes)
    )


def method(comparison: Comparison) -> str:
    """How the verdict was come to, in a few sentences."""
    taken = (
        "of rounds that were timed in turns"
        if comparison.paired
        else "of runs that were not made in turns, so that what changed on the machine between them counts too"
    )
    stalls = (
        "; or the same test finds that over 1 % more of head's rounds than of base's take half as long again as is usual"
        if comparison.paired
        else ""
    )
    return (
        f"Slower: a one-sided t test on logarithms {taken}, refuses a slow-down of half a per cent or less, with at most "
        f"{100 * comparison.level:g} % of false alarms over all benchmarks together (Holm){stalls}. No regression: a slow-down "
        f"of {100 * math.expm1(comparison.detectable):.3g} % is excluded at 95 %; what is neither is inconclusive."
    )


def history_rows(history: History) -> list[tuple[str, ...]]:
    """First and last level of each benchmark, and where it stepped between them."""
    from conformance.bench.history import SHORTEST_HISTORY

    return [
        (
            name,
            str(len(rows)),
            seconds(rows[0]["seconds"]),
            seconds(rows[-1]["seconds"]),
            ", ".join(rows[step]["label"] for step in history.steps[name])
            or ("none" if len(rows) >= SHORTEST_HISTORY else f"too few to tell ({SHORTEST_HISTORY})"),
            ", ".join(rows[step]["label"] for step in history.memory_steps[name]) or "none",
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
    from conformance.report.writing import write_whole, writing_to

    environment = recordings[1].runs[0].environment if recordings else None
    verdict = {**comparison.as_json(), "environment": environment}
    written = {VERDICT: json.dumps(verdict, indent=2) + "\n"}
    written["summary.md"] = summary(comparison, headline(recordings[1]) if recordings else "")
    if recordings:
        written["report.html"] = comparison_page(comparison, *recordings)
    for name, text in written.items():
        write_whole(out, name, text)
    with writing_to(out):
        for name in {"report.html", "comparison.png", "comparison.svg"} - {*written}:
            (out / name).unlink(missing_ok=True)
        drawn = charts.ratios(comparison)
        return [*written, *(charts.save(drawn, out, "comparison") if drawn is not None else ())]


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
    split = {name: match for name in names if (match := _NAME.fullmatch(name))}
    if len({match["common"] for match in split.values()}) != 1:
        return {name: name for name in names}
    short = {name: "{workload} {batch} {tokens}".format(**match.groupdict()) for name, match in split.items()}
    return {name: short.get(name, name) for name in names}


def common(names: Sequence[str]) -> str:
    """What :func:`labels` leave out."""
    short = labels(names)
    matches = (_NAME.fullmatch(name) for name in names if short[name] != name)
    return next((match["common"] for match in matches if match), "")


def headline(recording: Recording) -> str:
    """What all benchmarks have in common, the device, and the software that decides about speed, in a line."""
    environment = recording.runs[0].environment
    device, packages = environment.get("device", {}), environment.get("packages", {})
    software = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)
    return " on ".join(filter(None, [common(recording.names), f"{device.get('name')}, {software}"]))


def _of_peak(facts: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    """Prefill and training are bound by arithmetic, decoding by bandwidth."""
    if facts["workload"] == "decode":
        return _share(facts.get("bytes_per_second"), ceilings.get("bytes_per_second"), "bandwidth")
    if facts.get("mfu") is not None:
        return f"{100 * facts['mfu']:.0f} % MFU"
    return _share(facts["flops_per_second"], ceilings.get("flops"), "FLOP/s")


def _share(reached: float | None, ceiling: float | None, what: str) -> str:
    return f"{100 * reached / ceiling:.0f} % {what}" if reached and ceiling else ""
