"""A comparison for a pull request, or for the summary of a CI job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.bench.points import labels
from conformance.bench.results.comparison import Comparison, slowest_first
from conformance.bench.units import seconds

if TYPE_CHECKING:
    pass

from conformance.bench.report.rows import memory_change, method


def summary(comparison: Comparison, headline: str = "") -> str:
    """Markdown for a pull request or a CI job's summary; `headline` names the setting and the
    device."""
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
        times = [
            "" if value is None else seconds(value)
            for value in (one.base_seconds, one.head_seconds)
        ]
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
        cells = (
            f"`{short[one.name]}`",
            str(one.finding),
            *times,
            ratio,
            memory_change(one),
            one.why,
        )
        # A process's last words may span lines, which would end the row.
        lines.append(
            "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
        )
    told = [f"Measured on {headline}."] if headline else []
    if comparison.environment_change:
        told.append(f"The software changed besides the code: {comparison.environment_change}.")
    how = f"<details><summary>How this is decided</summary>\n\n{method(comparison)}\n</details>"
    return "\n".join([*lines, "", *told, "", how, ""])
