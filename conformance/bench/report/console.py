"""What a run and a comparison look like on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conformance.bench.points import common_setting
from conformance.bench.report.rows import compared_rows, headline, measured_rows, power_rows
from conformance.bench.results.comparison import Comparison
from conformance.bench.results.drawing import PowerReport, too_few
from conformance.bench.results.stored import Recording

if TYPE_CHECKING:
    from rich.console import Console


def write_measured(console: Console, recording: Recording) -> None:
    """A line for each benchmark: time, throughput, share of the device's peak, memory."""
    columns = ("benchmark", "median", "tokens/s", "of peak", "memory")
    console.print(headline(recording))
    console.print(table(columns, measured_rows(recording)))


def write_comparison(console: Console, comparison: Comparison) -> None:
    """The verdict, and a line for each benchmark, failures first."""
    console.print(f"{comparison.result} {comparison.head} against {comparison.base}")
    if comparison.refusal:
        console.print(f"  not compared: {comparison.refusal}")
        return
    told = common_setting([one.name for one in comparison.benchmarks])
    if told:
        console.print(f"  {told}")
    console.print(table(("benchmark", "finding", "head / base", ""), compared_rows(comparison)))


def write_power(console: Console, found: PowerReport) -> None:
    """How often each slow-down was found, and what was confirmed end to end."""
    draws = f"found of {found.rates[0].draws if found.rates else 0:,}"
    columns = ("benchmark", "slowed by", "measured", "pairs vary by", draws, "bounds")
    console.print(table(columns, power_rows(found.rates)))
    for share, recorded in too_few(found.recorded, found.pairs).items():
        console.print(
            f"  slowed by {100 * share:g} %: {recorded} pairs, too few for a comparison of "
            f"{found.pairs} (interrupted)"
        )
    if memory := found.memory:
        console.print(
            f"  {memory['injectedBytes']:,} bytes more were found in {memory['found']} of "
            f"{memory['of']} benchmarks"
        )
    for one in found.confirmations:
        console.print(
            f"  confirmed, slowed by {100 * one.slowdown:g} %: {one.result}, {len(one.slower)} "
            f"slower, {one.minutes:g} minutes"
        )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A borderless table for the terminal; long names fold, numbers do not."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in head:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
