"""A comparison for a pull request, or for the summary of a CI job."""

from __future__ import annotations

from conformance.bench.points import labels
from conformance.bench.report.templates import render
from conformance.bench.results.comparison import Comparison, slowest_first


def summary(comparison: Comparison, headline: str = "") -> str:
    """Markdown for a pull request or a CI job's summary; `headline` names the setting and the
    device."""
    order = slowest_first(comparison)
    short = labels([one.name for one in order])
    content = {"order": order, "short": short, "headline": headline}
    return render("summary.md.jinja", comparison=comparison, **content)
