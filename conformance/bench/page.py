"""Pages that stand alone: one file, no network, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.bench import charts
from conformance.bench.comparison import Comparison, slowest_first
from conformance.bench.report import compared_rows, headline, labels, measured_rows, method, shortened
from conformance.bench.results import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """Cells of a table, and the exit status that they stand for, which colours them."""

    cells: Sequence[str]
    status: int = 0


@dataclass(frozen=True)
class Chart:
    """An SVG of ours under a title; only :mod:`conformance.bench.charts` makes them."""

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
        Row(
            (
                short[one.name],
                f"{one.base_bytes:,}",
                f"{one.head_bytes:,}",
                f"{one.head_bytes - one.base_bytes:+,}",
            )
        )
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
            method(comparison),
        ),
        Section(
            "Runs, base grey and head blue",
            charts=_charts(
                [
                    (short[one.name], charts.distributions(one.name, base, head, paired=comparison.paired))
                    for one in order
                ]
            ),
        ),
        Section("Peak memory, bytes", ("benchmark", "base", "head", "difference"), memory),
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


def history_page(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], steps: Mapping[str, Sequence[int]], last: Recording
) -> str:
    """Every benchmark over time, and where the last recording stands on the roofline."""
    short = labels(list(rows))
    drawn = _charts([(short[name], charts.history(rows[name], steps[name])) for name in rows])
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
                note="Dotted: a step that chance alone would make once in a thousand such series.",
            ),
            *_measured(last),
        ],
    )


def _measured(recording: Recording) -> list[Section]:
    rows = [Row(cells) for cells in shortened(measured_rows(recording))]
    return [
        Section(
            "Against what the device can do", ("benchmark", "median", "tokens/s", "of peak", "memory"), rows
        ),
        Section(
            "Roofline",
            charts=_charts([("", charts.roofline(recording))]),
            note="Ceilings are measured: a half-precision matrix product and a copy, on random data.",
        ),
    ]


def _charts(drawn: Sequence[tuple[str, Figure | None]]) -> list[Chart]:
    return [Chart(title, charts.as_svg(figure)) for title, figure in drawn if figure is not None]


def _page(*, sections: Sequence[Section], **content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("conformance.bench", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    told = [section for section in sections if section.rows or section.charts]
    return environment.get_template("page.html.jinja").render(sections=told, **content)
