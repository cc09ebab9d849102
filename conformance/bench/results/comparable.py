"""What two recordings must have in common to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conformance.bench.results.stored import Recording, Run

_ASKED = ("backbone_id", "rounds", "seed")
"""Parts of the request that must be equal, besides those in the names of benchmarks. File locations
may differ."""


def in_turns(base: Recording, head: Recording) -> tuple[Recording, Recording, int] | None:
    """The runs of two stored recordings that took turns with each other, in order, and the number
    of pairs that lack one or both runs; None if no runs took turns."""
    before, after = ({run.pair: run for run in side.runs if run.pair} for side in (base, head))
    both = [pair for pair in before if pair in after]
    if not both:
        return None
    meant = max(int(before[pair].asked.get("pairs") or 0) for pair in both)
    return (
        Recording(base.label, tuple(before[pair] for pair in both)),
        Recording(head.label, tuple(after[pair] for pair in both)),
        max(meant, len(base.runs), len(head.runs)) - len(both),
    )


def why_not_comparable(
    base: Recording, head: Recording, *, allow_environment_change: bool = False
) -> str | None:
    """The difference between two recordings that makes a comparison meaningless; None if there is
    none."""
    runs = [*base.runs, *head.runs]
    devices = [run.environment.get("device", {}) for run in runs]
    if changed := _differences(*devices):
        return f"they were taken on different devices ({changed})"
    if any(device.get("mig") for device in devices):
        return "a MIG slice shares its memory bandwidth with others: time whole devices"
    if changed := _differences(*map(_asked, runs)):
        return f"their requests differ ({changed}): record them alike"
    changed = environment_change(base, head)
    if changed and not allow_environment_change:
        return (
            f"the software changed besides the code ({changed}); --allow-environment-change "
            f"compares them all the same"
        )
    return None


def environment_change(base: Recording, head: Recording) -> str:
    """How the software, apart from the compared code, differs between any two runs; empty if it
    does not."""
    environments = [
        {**run.environment, **run.environment.get("packages", {}), "device": None, "packages": None}
        for run in (*base.runs, *head.runs)
    ]
    return _differences(*environments)


def _asked(run: Run) -> dict[str, Any]:
    told = {name: run.asked.get(name) for name in _ASKED}
    if told["backbone_id"] is None:
        told["backbone_id"] = "the target's default"
    turns = {benchmark.in_turns for benchmark in run.benchmarks.values()}
    return {**told, "in turns": turns.pop() if len(turns) == 1 else None}


def _differences(*tables: Mapping[str, Any]) -> str:
    """What differs between the tables; None stands for unknown."""
    told = []
    for name in sorted({name for table in tables for name in table}):
        values = (table.get(name, "absent") for table in tables)
        known = dict.fromkeys(str(value) for value in values if value is not None)
        if len(known) > 1:
            told.append(f"{name} {' and '.join(known)}")
    return ", ".join(told)
