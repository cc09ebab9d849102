"""Pages that stand alone: one file, no network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.bench.points import labels
from conformance.bench.report import charts
from conformance.bench.report.rows import (
    compared_rows,
    headline,
    measured_rows,
    memory_change,
    method,
    shortened,
)
from conformance.bench.results.comparison import Comparison, slowest_first
from conformance.bench.results.stored import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from conformance.bench.results.history import History


@dataclass(frozen=True)
class Row:
    """Cells of a table, and the exit status that they stand for, which colours them."""

    cells: Sequence[str]
    status: int = 0


@dataclass(frozen=True)
class Chart:
    """An SVG under a title; only `charts` makes them."""

    title: str
    svg: str


@dataclass(frozen=True)
class Section:
    title: str
    head: Sequence[str] = ()
    rows: Sequence[Row] = ()
    charts: Sequence[Chart] = field(default_factory=tuple)
    note: str = ""


def comparison_page(comparison: Comparison, base: Recording, head: Recording) -> str:
    """The verdict with its numbers, distributions, memory and a roofline."""
    order = list(slowest_first(comparison))
    short = labels([one.name for one in order])
    memory = [
        Row((short[one.name], f"{one.base_bytes:,}", f"{one.head_bytes:,}", memory_change(one)))
        for one in order
        if one.base_bytes is not None and one.head_bytes is not None
    ]
    sections = [
        Section(
            "Benchmarks",
            ("benchmark", "finding", "head / base", ""),
            [
                Row(cells, one.finding.exit_status)
                for cells, one in zip(shortened(compared_rows(comparison)), order, strict=True)
            ],
            _charts([("", charts.ratios(comparison))]),
            "Points are estimates, and lines end at one-sided 95 % bounds. Dotted: the slow-down "
            f"that must be excluded. {method(comparison)}",
        ),
        Section(
            "Runs, base grey and head blue",
            charts=_charts(
                [
                    (
                        short[one.name],
                        charts.distributions(one.name, base, head, paired=comparison.paired),
                    )
                    for one in order
                ]
            ),
        ),
        Section("Peak memory", ("benchmark", "base, bytes", "head, bytes", "change"), memory),
        *_measured(head),
    ]
    return _page(
        title="Backbone benchmarks compared",
        result=comparison.result,
        status=comparison.exit_status,
        subject=f"{comparison.head} against {comparison.base}",
        environment=headline(head),
        paragraphs=[f"Not compared: {comparison.refusal}."] if comparison.refusal else [],
        sections=[] if comparison.refusal else sections,
    )


def history_page(history: History) -> str:
    """Every benchmark over time, and where the last recording stands on the roofline."""
    last = history.recordings[-1]
    short = labels(list(history.rows))
    drawn = _charts(
        [
            (short[name], charts.history(rows, history.steps[name], history.memory_steps[name]))
            for name, rows in history.rows.items()
        ]
    )
    stepped = any([*history.steps.values(), *history.memory_steps.values()])
    return _page(
        title="Backbone benchmarks over time",
        result="",
        status=0,
        subject="",
        environment=headline(last),
        paragraphs=[],
        sections=[
            Section(
                "History",
                charts=drawn,
                note="Dotted: a step. In time, one that chance alone would produce in one of a "
                "thousand such series; in memory, which is counted, a change of more than one part "
                "in a thousand."
                if stepped
                else "",
            ),
            *_measured(last),
        ],
    )


def _measured(recording: Recording) -> list[Section]:
    rows = [Row(cells) for cells in shortened(measured_rows(recording))]
    return [
        Section(
            f"Throughput of {recording.label}",
            ("benchmark", "median", "tokens/s", "of peak", "peak memory"),
            rows,
            note="Of the median process. Shares are of a half-precision matrix product and of a "
            "copy, measured on random data; MFU is of the datasheet's dense peak.",
        ),
        Section(
            "Roofline",
            charts=_charts([("", charts.roofline(recording))]),
            note="The line is the best that was measured: limited by the copy on the slope, and by "
            "the matrix product on the flat.",
        ),
    ]


def _charts(drawn: Sequence[tuple[str, Figure | None]]) -> list[Chart]:
    return [Chart(title, charts.as_svg(figure)) for title, figure in drawn if figure is not None]


def _page(*, sections: Sequence[Section], **content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("conformance.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    told = [section for section in sections if section.rows or section.charts]
    return environment.get_template("page.html.jinja").render(sections=told, **content)
