"""Slow-downs made on purpose, to learn which of them a comparison finds: real extra work of a known size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

#: Side of the matrix that extra work on a CPU multiplies with itself: a few microseconds.
_SIDE = 64
_UNITS = 400


def extra_work(device: str, units: int) -> Callable[[], None]:
    """Work of ``units``: on a CPU so many small matrix products, on CUDA a kernel that spins for so many cycles."""
    import torch

    if device == "cuda":
        return lambda: torch.cuda._sleep(units)  # type: ignore[no-untyped-call]
    matrix = torch.eye(_SIDE)
    made = torch.empty_like(matrix)

    def multiply() -> None:
        for _ in range(units):
            torch.mm(matrix, matrix, out=made)

    return multiply


def seconds_per_unit(device: str) -> float:
    """How long a unit of :func:`extra_work` takes on this machine."""
    from conformance.bench.timers import timer_for

    units = _UNITS if device == "cpu" else 10_000_000
    work, timer = extra_work(device, units), timer_for(device)
    work()
    seconds = []
    for _ in range(31):
        begun = timer()
        work()
        seconds.append(timer() - begun)
        time.sleep(0)
    return statistics.median(seconds) / units


def slowed(work: Callable[[Any], Any], device: str, units: int, hoarded: int) -> Callable[[Any], Any]:
    """``work`` with so many units of extra work behind it, and ``hoarded`` bytes held while it runs."""
    if not units and not hoarded:
        return work
    import torch

    extra = extra_work(device, units) if units else lambda: None

    def slower(prepared: Any) -> Any:
        held = torch.empty(hoarded, dtype=torch.uint8, device=device) if hoarded else None
        made = work(prepared)
        extra()
        del held
        return made

    return slower
