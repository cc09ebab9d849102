"""Rows that commands print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from conformance.report.terminal import say, wrapped


def show(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as JSON, or in aligned columns."""
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    cells = [[cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # What is too long for the terminal goes on under the last column.
    indent = sum(widths[:-1]) + 2 * len(widths[:-1])
    for row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        say(wrapped(line.rstrip(), indent=indent))


def cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
