"""Pages that stand alone, in the look of the certificate's report: one file, no network, no
scripts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from conformance.bench.points import labels
from conformance.bench.report import charts
from conformance.bench.report.rows import compared_rows, measured_rows, memory_change
from conformance.bench.report.templates import render
from conformance.bench.results.comparison import Comparison, slowest_first
from conformance.bench.results.stored import Recording
from conformance.report.html import part, policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from conformance.bench.results.history import History


def comparison_page(comparison: Comparison, base: Recording, head: Recording) -> str:
    """The verdict with its numbers, distributions, memory and a roofline."""
    order = slowest_first(comparison)
    short = labels([one.name for one in order])
    return render(
        "comparison.html.jinja",
        comparison=comparison,
        compared=[
            (
                row.benchmark,
                (row.time, row.time_status),
                row.ratio,
                row.at_most,
                (row.memory, row.memory_status),
                row.why,
            )
            for row in compared_rows(comparison)
        ],
        ratios=_svgs([("", charts.ratios(comparison))]),
        distributions=_svgs(
            (short[one.name], charts.distributions(one.name, base, head, paired=comparison.paired))
            for one in order
        ),
        memory=[
            (short[one.name], f"{one.base_bytes:,}", f"{one.head_bytes:,}", memory_change(one))
            for one in order
            if one.base_bytes is not None and one.head_bytes is not None
        ],
        **_reached(head),
    )


def history_page(history: History) -> str:
    """Every benchmark over time, and where the last recording stands on the roofline."""
    short = labels(list(history.rows))
    return render(
        "history.html.jinja",
        drawn=_svgs(
            (short[name], charts.history(rows, history.steps[name], history.memory_steps[name]))
            for name, rows in history.rows.items()
        ),
        stepped=any([*history.steps.values(), *history.memory_steps.values()]),
        **_reached(history.recordings[-1]),
    )


def _reached(recording: Recording) -> dict[str, Any]:
    style = part("look.css") + Markup(Path(__file__).with_name("page.css").read_text("utf-8"))
    return {
        "style": style,
        "policy": policy(style),
        "recording": recording,
        "measured": measured_rows(recording),
        "roofline": _svgs([("", charts.roofline(recording))]),
    }


_COLOURS = {
    charts.BASE: "var(--base)", charts.HEAD: "var(--head)", charts.BAD: "var(--bad)",
    charts.OPEN: "var(--warn)", charts.FAINT: "var(--faint)", "#000000": "var(--ink)",
    "#ffffff": "none",
}  # fmt: skip
"""The colours of charts, in the page's own: they follow it into the dark."""
_STYLE = re.compile(r' style="([^"]*)"')
_REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')


def _svgs(drawn: Iterable[tuple[str, Figure | None]]) -> list[tuple[str, Markup]]:
    """The charts that there are, each under its title; only `charts` makes them, so that they need
    no escaping."""
    return [
        (title, Markup(_adapted(charts.as_svg(figure))))
        for title, figure in drawn
        if figure is not None
    ]


def _adapted(svg: str) -> str:
    """A chart in the page's colours and font, without the styles that the page's policy forbids,
    its names told apart from those of the other charts."""
    own = hashlib.sha256(svg.encode("utf-8")).hexdigest()[:8]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = _REFERENCE.sub(rf"\g<1>{own}-", _STYLE.sub(_as_attributes, svg))
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(f'"{drawn}"', f'"{shown}"')
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _as_attributes(style: re.Match[str]) -> str:
    pairs = (one.split(":", 1) for one in style[1].split(";") if ":" in one)
    return "".join(
        f' {name.strip()}="{value.strip()}"' for name, value in pairs if "family" not in name
    )
