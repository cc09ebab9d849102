"""Numbers with the unit that fits them, for people."""

from __future__ import annotations

from collections.abc import Sequence


def seconds(value: float) -> str:
    """Three digits with the unit that fits."""
    return _scaled(value, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)))


def size(count: int) -> str:
    """Bytes with a decimal unit."""
    return _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)))


def _scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    # A value that rounds to a thousand of one unit is shown as one of the next.
    unit, factor = next((one for one in units if value >= 0.9995 * one[1]), units[-1])
    return f"{value / factor:.3g} {unit}"
