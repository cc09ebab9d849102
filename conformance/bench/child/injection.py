"""Deliberate slow-downs of a known size, to learn which of them a comparison detects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.bench.child.timers import median_seconds

_UNITS = {"cpu": 20_000, "cuda": 10_000_000}
"""Units timed to learn how long one takes: a fraction of a millisecond on a CPU, a few milliseconds
on CUDA."""
_REPEATS = 31


def extra_work(device: str, units: int) -> Callable[[], None]:
    """Work of `units` steps of a Python loop on a CPU, or of spinning cycles on CUDA.

    Neither touches memory: work that does (a matrix product, say) also evicts the measured data
    from the caches, which slows it by up to another per cent, however little work is added.
    """
    if device != "cpu":
        import torch

        return lambda: torch.cuda._sleep(units)  # type: ignore[no-untyped-call]

    def count() -> None:
        for _ in range(units):
            pass

    return count


def seconds_per_unit(device: str) -> float:
    """How long a unit of `extra_work` takes on this machine."""
    units = _UNITS["cpu" if device == "cpu" else "cuda"]
    return median_seconds(extra_work(device, units), device, _REPEATS) / units


def slowed(
    work: Callable[[Any], Any], device: str, units: int, hoarded: int
) -> Callable[[Any], Any]:
    """`work` followed by `units` of extra work, with `hoarded` bytes held while it runs."""
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
