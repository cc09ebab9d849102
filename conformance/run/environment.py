"""The software and the machine that a run was made on, as certificates and benchmark results record
them."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conformance.version import __version__

_RECORDED_PACKAGES = (
    "backbone-conformance", "torch", "transformers", "tokenizers", "safetensors",
    "huggingface-hub", "hypothesis",
    "accelerate", "numpy", "sentencepiece", "mistral-common", "flash-attn",
)  # fmt: skip
"""Packages whose versions can change a verdict."""
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where a container's limit of memory is written, by version 2 and version 1 of cgroups."""


def environment() -> dict[str, Any]:
    """The software and the machine, as far as they can change a verdict."""
    packages = {name: found for name in _RECORDED_PACKAGES if (found := _version(name)) is not None}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": cpus(),
        "packages": packages,
        "cuda": _cuda(),
    }


def cpus() -> int | None:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory(field: str) -> int | None:
    """Bytes of a field of `/proc/meminfo` (`MemTotal` or `MemAvailable`), or a container's limit
    where that is less; None where neither is told."""
    found = [_meminfo(field), *map(_limit, _LIMITS)]
    return min((count for count in found if count is not None), default=None)


def _meminfo(field: str) -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # `max`, without a limit
        return None


def versions() -> str:
    """`conformance 0.1.0 (Python 3.11.7, torch 2.13.0, transformers 5.23.0)`. Imports neither."""
    found = {"Python": platform.python_version()}
    found.update((name, _version(name) or "missing") for name in ("torch", "transformers"))
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"conformance {__version__} ({told})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cuda() -> str | None:
    torch = sys.modules.get("torch")
    return (
        torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
    )
