"""Recordings made up for tests: what the numbers are is what is tested, not how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conformance.bench.results.comparison import Comparison, compare
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


def compared_recordings() -> tuple[Comparison, Recording, Recording]:
    """A comparison in which everything occurs: slower, faster, more memory with and without more
    time, and what cannot be told."""
    settings = ("sdpa-b1-s32", "eager-b4-s512", "sdpa-b8-s128", "sdpa-b2-s64", "sdpa-b1-s64")
    names = [f"prefill[mistral-v0.1-7b-instruct-probe-{setting}]" for setting in settings]

    def side(
        label: str, factors: Sequence[float], memory: Sequence[int], strays: Sequence[float]
    ) -> Recording:
        return recording(
            label,
            *(
                document(
                    *(
                        entry(name, [factor * (1 + drift * stray)] * 3, memory=peak)
                        for name, factor, stray, peak in zip(
                            names, factors, strays, memory, strict=True
                        )
                    ),
                    pair=str(number),
                )
                for number, drift in enumerate((0.0, 0.001, -0.001, 0.002, -0.002, 0.0))
            ),
        )

    base = side("main", [1.0] * 5, [1_000_000] * 5, [0.1] * 5)
    head = side(
        "the working tree",
        [1.05, 1.0, 0.9, 1.04, 1.0],
        [1_000_000, 1_200_000, 900_000, 1_300_000, 1_100_000],
        [1, 1, 1, 1, 40],
    )
    return compare(base, head, paired=True), base, head
