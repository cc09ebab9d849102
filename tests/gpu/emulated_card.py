"""The emulated device as the card of a machine: `torch.cuda` answers for it, and so does a
`nvidia-smi` on the path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.gpu.emulated import NAME, emulated_device

CARD = "An Emulated Card"
ROOT = Path(__file__).parents[2]
QUIET = "570.1, 1980, 3201, 1980, 41, 301.5, Disabled, 0x0000000000000000"
"""What `nvidia-smi` says of a card that nothing disturbs: driver, clocks (MHz), temperature, watts,
MIG, reasons for slower clocks."""


class Event:
    """Stands in for `torch.cuda.Event`: the emulated device is done when the call returns."""

    def __init__(self, enable_timing: bool) -> None:
        self._at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later._at - self._at)


_STAYS: list[Any] = []


def insert() -> None:
    """Put the card into this process, for good."""
    _STAYS.append(emulated_device())
    _STAYS[-1].__enter__()
    answers: Mapping[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda on=None: CARD,
        "get_device_properties": lambda on=None: SimpleNamespace(
            name=CARD, total_memory=1 << 40, multi_processor_count=1
        ),
        "_sleep": _spin,
        "Event": Event,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    from conformance.bench.child import device

    # Ceilings are computed on a CPU here.
    device._MATRIX["cuda"], device._COPIED["cuda"] = 64, 1 << 16


def _spin(cycles: int) -> None:
    end = time.perf_counter() + cycles * 1e-9
    while time.perf_counter() < end:
        pass


def in_environment(folder: Path, answer: str | None = QUIET, processes: int = 1) -> dict[str, str]:
    """Environment variables that give every process the card, and a driver that gives `answer`;
    none at all for None."""
    tool = folder / "nvidia-smi"
    folder.mkdir(parents=True, exist_ok=True)
    pids = "".join(f"{4000 + number}\\n" for number in range(processes))
    tool.write_text(
        "#!/bin/sh\n"
        f"""case "$*" in *query-compute-apps*) printf '{pids}' ;; *) echo '{answer}' ;; esac\n"""
    )
    tool.chmod(0o755 if answer is not None else 0o644)
    here = [str(Path(__file__).parent / "on_startup"), str(ROOT)]
    return {
        "PATH": os.pathsep.join([str(folder), "/usr/bin", "/bin"]),
        "PYTHONPATH": os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


__all__ = ["CARD", "NAME", "QUIET", "in_environment", "insert"]
