from __future__ import annotations

import pytest

from conformance.bench.units import seconds, size


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2.0, "2 s"),
        (0.99949, "999 ms"),
        (0.9999, "1 s"),
        (4.5e-3, "4.5 ms"),
        (7e-8, "70 ns"),
        (3e-12, "0.003 ns"),
    ],
)
def test_seconds(value: float, told: str) -> None:
    assert seconds(value) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 bytes"), (999, "999 bytes"), (999_999_999, "1 GB"), (17_059_624, "17.1 MB")],
)
def test_sizes(count: int, told: str) -> None:
    assert size(count) == told
