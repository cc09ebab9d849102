"""Pages that stand alone: one file, no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from conformance.bench.points import labels
from conformance.bench.report import charts
from conformance.bench.report.rows import compared_rows, measured_rows, memory_change
from conformance.bench.report.templates import render
from conformance.bench.results.comparison import Comparison, slowest_first
from conformance.bench.results.stored import Recording

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
        compared=compared_rows(comparison),
        statuses=[one.finding.exit_status for one in order],
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
    return {
        "recording": recording,
        "measured": measured_rows(recording),
        "roofline": _svgs([("", charts.roofline(recording))]),
    }


def _svgs(drawn: Iterable[tuple[str, Figure | None]]) -> list[tuple[str, Markup]]:
    """The charts that there are, each under its title; only `charts` makes them, so that they need
    no escaping."""
    return [(title, Markup(charts.as_svg(figure))) for title, figure in drawn if figure is not None]
