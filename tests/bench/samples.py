"""Recordings made up for tests: what the numbers are is what is tested, not how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conformance.bench.results.stored import SCHEMA, Recording, labelled

DEVICE = {"kind": "cpu", "name": "a processor", "threads": 1, "mig": False}
PREFILL = "prefill[mistral-probe-sdpa-b1-s32]"
DECODE = "decode[mistral-probe-sdpa-b1-s32]"


def entry(
    name: str, rounds: Sequence[float], *, memory: int | None = 1000, **facts: Any
) -> dict[str, Any]:
    ordered = sorted(rounds)
    return {
        "name": name,
        "stats": {"median": ordered[len(ordered) // 2], "data": list(rounds)},
        "extra_info": {
            "workload": name.split("[")[0], "batch": 1, "tokens": 32, "peak_memory_bytes": memory,
            "in_turns": True,
            "rounds_left_out": 0, "tokens_per_second": 1.0, "flops": 8.0, "bytes_read": 4.0,
            "flops_per_second": 2.0, **facts,
        },
    }  # fmt: skip


def document(
    *entries: Mapping[str, Any],
    points: Sequence[tuple[str, str, str]] = (),
    environment: Mapping[str, Any] | None = None,
    recorded: str = "2026-01-01T00:00:00+00:00",
    pair: str | None = None,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    measured = [(one["name"], "measured", "") for one in entries]
    told = {name: (name, status, why) for name, status, why in (*measured, *points)}
    return {
        "benchmarks": list(entries),
        "conformance": {
            "schema": SCHEMA,
            "recorded": recorded,
            "request": {**(asked or {}), "pair": pair},
            "environment": environment
            or {"device": DEVICE, "python": "3.11", "packages": {"torch": "2.13.0"}},
            "ceilings": {"flops": 4.0, "bytes_per_second": 2.0},
            "points": [
                {"name": name, "status": status, "why": why} for name, status, why in told.values()
            ],
        },
    }


def recording(label: str, *documents: dict[str, Any]) -> Recording:
    return labelled(
        label, [(one, f"{label}-{number}.json") for number, one in enumerate(documents)]
    )


def runs(label: str, seconds: Sequence[float], name: str = PREFILL, **facts: Any) -> Recording:
    """One process for each of `seconds`, whose rounds all took that long."""
    return recording(label, *(document(entry(name, [value] * 3, **facts)) for value in seconds))
