"""The device that a benchmark ran on: its name, its top speed, and what disturbed it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from conformance.bench.child.timers import steady_seconds
from conformance.errors import CannotAssess

DENSE_PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,  # nvidia-a100-datasheet
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    # h100-datasheet, SXM; the PCIe card has another name and a lower peak
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,  # h200-datasheet, SXM: the same processor
}
"""Dense bf16 and fp16 peaks in FLOP/s by the device's name, without sparsity, from the vendor's
datasheets."""
_NUMBERS = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "max_sm_clock_mhz": "clocks.max.sm",
    "temperature_celsius": "temperature.gpu",
    "power_watts": "power.draw",
}
"""What `state` reports, and the field of `nvidia-smi` that holds it."""
_ASKED = ("driver_version", *_NUMBERS.values(), "mig.mode.current")
"""Fields queried from `nvidia-smi`, with the first of `_REASONS` that the driver knows."""
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_POWER_CAP = "power cap"
"""The throttling that is no disturbance, since a card at its cap runs at its sustained speed."""
# Bits of the clocks' event reasons that slow the card. Left out: idle (1), applications' clocks (2)
# and display settings (0x100).
_THROTTLED = {
    0x4: _POWER_CAP,
    0x8: "hardware slow-down",
    0x10: "sync boost",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
_CLOCK_SLACK = 0.1
"""Relative clock change that is a disturbance. Boost clocks move by a few steps while a card warms
up; a larger change away from the power cap means that somebody has set them."""
_SECONDS_TO_ANSWER = 10.0
_MATRIX = {"cuda": 8192, "cpu": 512}
"""Sides of the matrices that measure the ceiling: a product keeps every unit busy, and is done
within a second on a processor that emulates bfloat16 too (0.4 s on one with AVX2 alone)."""
_COPIED = {"cuda": 2 << 30, "cpu": 64 << 20}
"""Bytes that are copied: more than every cache holds."""


def check_device(device: str) -> None:
    """Refuse a CUDA device that is not there.

    Raises:
        CannotAssess: torch sees none; the message gives its version.
    """
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise CannotAssess(
            f"there is no CUDA device (torch {torch.__version__}): leave --device out, or run it "
            f"on a machine that has one"
        )


def device_facts(device: str) -> dict[str, Any]:
    """Name and size of the device, as JSON values; results of two devices are never compared."""
    import torch

    if device != "cpu":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        told = _nvidia_smi()
        return {
            "kind": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "mig": told.get("mig.mode.current") == "Enabled" or " MIG " in properties.name,
        }
    threads = torch.get_num_threads()
    return {"kind": "cpu", "name": _processor(), "threads": threads, "mig": False}


def driver(device: str) -> str | None:
    """The version of the device's driver; None if it has none or does not report it."""
    return _nvidia_smi().get("driver_version") if device != "cpu" else None


def state(device: str) -> dict[str, Any]:
    """The device's current clocks, temperature, throttling and number of processes."""
    if device == "cpu":
        return {"load": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    told = _nvidia_smi()
    reasons = int(_number(told.get("reasons"), lambda bits: int(bits, 16)) or 0)
    numbers = {name: _number(told.get(field)) for name, field in _NUMBERS.items()}
    throttled = [name for bit, name in _THROTTLED.items() if reasons & bit]
    return {**numbers, "throttled": throttled, "processes": _processes()}


def disturbances(before: Mapping[str, Any], after: Mapping[str, Any], own: int = 1) -> list[str]:
    """What makes a measurement between two `state` readings doubtful, in words; empty if nothing
    does.

    `own` is the number of our processes on the device: two if they take turns.
    """
    reasons = dict.fromkeys([*before.get("throttled", ()), *after.get("throttled", ())])
    # At its power cap a card runs at its sustained speed, and slows both of two that take turns.
    told = [f"throttled: {reason}" for reason in reasons if reason != _POWER_CAP]
    if _POWER_CAP not in reasons:
        told += [
            f"the {name} clock went from {before[key]:g} to {after[key]:g} MHz"
            for name, key in (("processor's", "sm_clock_mhz"), ("memory's", "memory_clock_mhz"))
            if before.get(key)
            and after.get(key)
            and abs(after[key] / before[key] - 1) > _CLOCK_SLACK
        ]
    others = max(before.get("processes") or 0, after.get("processes") or 0) - own
    if others > 0:
        told.append(f"{others} other processes on the device")
    return told


def ceilings(device: str) -> dict[str, float]:
    """The device's top speed, measured on random data once clocks are steady: `flops` of a
    half-precision matrix product and `bytes_per_second` of a copy, reads and writes counted."""
    import torch

    on, kind = torch.device(device), "cpu" if device == "cpu" else "cuda"
    side, copied = _MATRIX[kind], _COPIED[kind]
    left, right = (torch.randn(side, side, device=on).to(torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    product = steady_seconds(lambda: left @ right, device)
    copy = steady_seconds(lambda: target.copy_(source), device)
    return {"flops": 2 * side**3 / product, "bytes_per_second": 2 * copied / copy}


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = next(line for line in lines if line.startswith("model name"))
        return named.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def _nvidia_smi() -> dict[str, str]:
    """What `nvidia-smi` reports on the current device; empty if it is missing or does not
    answer."""
    for reasons in _REASONS:
        answer = _ask(f"--query-gpu={','.join((*_ASKED, reasons))}")
        values = [value.strip() for value in answer.split(",")]
        if len(values) == len(_ASKED) + 1:
            return dict(zip((*_ASKED, "reasons"), values, strict=True))
    return {}


def _processes() -> int | None:
    """The number of processes computing on the device, including this one; None if unknown."""
    # Only counted: inside a container the driver may know processes by other ids.
    pids = {line for line in _ask("--query-compute-apps=pid").split() if line.isdigit()}
    return len(pids) or None


def _ask(question: str) -> str:
    import torch

    # By UUID: an index counts only the visible devices.
    current = torch.cuda.current_device()
    uuid = getattr(torch.cuda.get_device_properties(current), "uuid", None)
    device = current if uuid is None else f"GPU-{uuid}"
    try:
        return subprocess.run(
            ["nvidia-smi", "--format=csv,noheader,nounits", f"--id={device}", question],
            capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""


def _number(text: str | None, read: Callable[[str], float] = float) -> float | None:
    """The number in a field; None if the card does not report it."""
    try:
        return read(text or "")
    except ValueError:
        return None
