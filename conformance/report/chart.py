"""The one chart of a report: how half-precision errors grow from layer to layer, as an SVG inside
the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WIDTH, _HEIGHT = 520, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 96, 12, 24

_LINES = {"reference": "var(--faint)", "subject": "var(--ink)"}
"""The lines: each one's key in the evidence, and its colour."""


def growth_chart(growth: Any) -> str:
    """An `<svg>` element of what `evidence["error growth"]` holds; empty if it is not such a list.

    Only numbers of the evidence and fixed texts get into it, so it needs no escaping.
    """
    rows = [row for row in growth if isinstance(row, Mapping)] if isinstance(growth, list) else []
    lines = {key: [_number(row.get(key)) for row in rows] for key in _LINES}
    values = [value for line in lines.values() for value in line]
    if len(rows) < 2 or any(value is None for value in values):
        return ""
    highest = max(filter(None, values), default=1.0)
    across = (_WIDTH - _LEFT - _RIGHT) / (len(rows) - 1)
    down = (_HEIGHT - _TOP - _BOTTOM) / highest

    def point(index: int, value: float) -> str:
        return f"{_LEFT + index * across:.1f},{_HEIGHT - _BOTTOM - value * down:.1f}"

    drawn = []
    for key, colour in _LINES.items():
        line = [value or 0.0 for value in lines[key]]
        points = " ".join(point(index, value) for index, value in enumerate(line))
        x, y = point(len(line) - 1, line[-1]).split(",")
        drawn += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{float(x) + 6:.1f}" y="{float(y) + (12 if key == "subject" else 0):.1f}" '
            f'fill="{colour}">{key}</text>',
        ]
    base = _HEIGHT - _BOTTOM
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12" '
            'aria-label="error after each layer, subject and reference">',
            f'<path d="M{_LEFT},{_TOP}V{base}H{_WIDTH - _RIGHT}" fill="none" '
            f'stroke="var(--line)"/>',
            f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end" '
            f'fill="var(--faint)">{highest:.2g}</text>',
            f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end" fill="var(--faint)">0</text>',
            f'<text x="{_LEFT}" y="{_HEIGHT - 6}" fill="var(--faint)">layer 0</text>',
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end" '
            f'fill="var(--faint)">{len(rows) - 1}</text>',
            *drawn,
            "</svg>",
        ]
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None
