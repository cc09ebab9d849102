"""The benchmarks that pytest collects: one for each point of the request."""

from __future__ import annotations

from typing import Any


def test_point(benchmark: Any, stopwatch: Any, point: Any) -> None:
    stopwatch.time(benchmark, point)
