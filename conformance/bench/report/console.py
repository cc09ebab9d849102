"""What a run and a comparison look like on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.bench.points import common_setting
from conformance.bench.report.rows import compared_rows, headline, measured_rows, power_rows
from conformance.bench.results.comparison import Comparison
from conformance.bench.results.drawing import PowerReport, too_few
from conformance.bench.results.stored import Recording

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_GAP = "  "
"""Between two columns, and before what stands under a name."""


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
    rows = compared_rows(comparison)
    columns = ("benchmark", "time", "head / base", "at most", "peak memory")
    console.print(
        table(
            columns,
            [(row.benchmark, row.time, row.ratio, row.at_most, row.memory) for row in rows],
        )
    )
    for row in rows:
        if row.status:
            console.print(wrapped(f"{row.benchmark}: {row.why}", console.width))


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


@dataclass(frozen=True)
class Table:
    """A table without borders. Where its rows are wider than the terminal, the first cell of each
    has a line of its own, and the others stand under it: no name and no number is broken."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        every = [self.head, *self.rows]
        widths = [max(len(row[column]) for row in every) for column in range(len(self.head))]
        fits = sum(widths) + len(_GAP) * (len(widths) - 1) <= options.max_width
        for number, row in enumerate(every):
            cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
            style = "" if number else "dim"
            if fits:
                yield Text(_GAP.join(cells).rstrip(), style)
            else:
                yield Text(row[0], style, overflow="fold")
                yield Text(f"{_GAP}{_GAP.join(cells[1:]).rstrip()}", style, overflow="fold")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal, as wide as it needs to be."""
    return Table(head, rows)


def wrapped(text: str, width: int) -> str:
    """A reason under a table, in lines that the terminal has room for."""
    return textwrap.fill(
        text, width, initial_indent=_GAP, subsequent_indent=2 * _GAP, break_on_hyphens=False
    )
