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


def timer_for(device: str) -> Any:
    """The timer for pytest-benchmark: CUDA events, or the wall clock for other devices."""
    return DeviceInstant if device == "cuda" else time.perf_counter


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
