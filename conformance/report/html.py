"""`report.html`: one file without scripts or references to others, so that it can be mailed and
still be read."""

from __future__ import annotations

from pathlib import Path

from conformance.report import narrative
from conformance.report.chart import growth_chart
from conformance.verdict.verdict import Verdict

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def html(verdict: Verdict) -> str:
    """The report as an HTML document. Whatever comes from the subject is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = narrative.visible
    environment.filters["text"] = narrative.as_text
    environment.filters["chart"] = lambda growth: Markup(growth_chart(growth))
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        verdict=verdict,
        assessment=verdict.assessment,
        narrative=narrative,
        rerun=[
            narrative.rerun_command(verdict, [cause.outcome.id])
            for cause in verdict.root_causes[:1]
            if cause.denies
        ],
    )
