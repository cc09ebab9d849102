"""Slow-downs made on purpose, to learn which of them a comparison finds: real extra work of a known
size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.bench.child.timers import median_seconds

_UNITS = {"cpu": 20_000, "cuda": 10_000_000}
"""Units that tell how long one is: a fraction of a millisecond on a CPU, a few milliseconds on
CUDA."""
_REPEATS = 31


def extra_work(device: str, units: int) -> Callable[[], None]:
    """Work of `units`: on a CPU so many steps of a Python loop, on CUDA a kernel that spins for so
    many cycles.

    Neither touches memory: work that does (a matrix product, say) also drives out of the caches
    what is measured, and slows that by up to a per cent besides, however little of it there is.
    """
    if device == "cuda":
        import torch

        return lambda: torch.cuda._sleep(units)  # type: ignore[no-untyped-call]

    def count() -> None:
        for _ in range(units):
            pass

    return count


def seconds_per_unit(device: str) -> float:
    """How long a unit of `extra_work` takes on this machine."""
    units = _UNITS[device]
    return median_seconds(extra_work(device, units), device, _REPEATS) / units


def slowed(
    work: Callable[[Any], Any], device: str, units: int, hoarded: int
) -> Callable[[Any], Any]:
    """`work` with so many units of extra work behind it, and `hoarded` bytes held while it runs."""
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
