"""The files that a comparison leaves in the folder that `--out` names."""

from __future__ import annotations

import json
from pathlib import Path

from conformance.bench.report.markdown import summary
from conformance.bench.report.rows import headline
from conformance.bench.results.comparison import Comparison
from conformance.bench.results.stored import VERDICT, Recording


def write_all(
    comparison: Comparison, recordings: tuple[Recording, Recording] | None, out: Path
) -> list[str]:
    """Write `verdict.json` and `summary.md` to `out`, and `report.html` and the chart `comparison`
    if there is something to draw. Earlier pages and charts are removed. Returns the names
    written."""
    from conformance.bench.report import charts
    from conformance.bench.report.html import comparison_page
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
