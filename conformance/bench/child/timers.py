"""Timers for pytest-benchmark, which computes `timer() - timer()` and takes the result as
seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


class DeviceInstant:
    """A moment in the stream of work of the current CUDA device.

    pytest-benchmark does not wait for the device: milliseconds of asynchronous work would read as
    the microseconds of their launch. Subtracting two instants waits for the later one, and gives
    the seconds between them on the device's clock
    (https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html: half a microsecond).
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        import torch

        self._event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def __sub__(self, earlier: DeviceInstant) -> float:
        self._event.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1e3


_REPEATS = 9
_STEADY = 0.01
"""Relative change between medians of `_REPEATS` that is no longer warming up."""
_MOST_SECONDS = 5.0
"""Seconds after which no further median is begun."""


def timer_for(device: str) -> Any:
    """The timer for pytest-benchmark: the wall clock, or CUDA events."""
    return time.perf_counter if device == "cpu" else DeviceInstant


def median_seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """The median time of `work` on the device, after a first run that does not count."""
    timer = timer_for(device)
    work()
    seconds = []
    for _ in range(repeats):
        begun = timer()
        work()
        seconds.append(timer() - begun)
        time.sleep(0)  # lets other processes run now rather than during a measurement
    return statistics.median(seconds)


def steady_seconds(work: Callable[[], Any], device: str) -> float:
    """The median time of `work` once it no longer changes: a card that was idle takes a second or
    two to raise its clocks.

    The last that fits into `_MOST_SECONDS` is taken where it never settles.
    """
    begun = time.monotonic()
    work()
    # A processor without instructions for half precision is a hundred times slower.
    repeats = _REPEATS if time.monotonic() - begun < _MOST_SECONDS / (4 * _REPEATS) else 1
    before = median_seconds(work, device, repeats)
    while time.monotonic() - begun < _MOST_SECONDS:
        now = median_seconds(work, device, repeats)
        if abs(now / before - 1) <= _STEADY:
            return now
        before = now
    return before
