"""The software and the machine that a run was made on, as certificates and benchmark results record
them."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from conformance.version import __version__

_RECORDED_PACKAGES = (
    "backbone-conformance", "torch", "transformers", "tokenizers", "safetensors",
    "huggingface-hub", "hypothesis",
    "accelerate", "numpy", "sentencepiece", "mistral-common", "flash-attn",
)  # fmt: skip
"""Packages whose versions can change a verdict."""


def environment() -> dict[str, Any]:
    """The software and the machine, as far as they can change a verdict."""
    packages = {name: found for name in _RECORDED_PACKAGES if (found := _version(name)) is not None}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": packages,
        "cuda": _cuda(),
    }


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
