"""Stored results: pytest-benchmark's JSON of one process, with what we add to it, in a file or a folder of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.run_request import CannotAssess

#: The version of stored results that this release writes and reads.
SCHEMA = 1


#: What every benchmark records beside its times.
_FACTS = {"workload", "batch", "tokens", "tokens_per_second", "flops", "bytes_read", "flops_per_second"}


class InvalidResults(CannotAssess):
    """A stored result cannot be used. The message names the file, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Benchmark:
    """One point of one process: the median time of a round, what the point cost in memory, and pytest-benchmark's entry."""

    name: str
    seconds: float
    peak_memory: int | None
    entry: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What we recorded beside the times: workload, attention, rates, clocks."""
        return self.entry.get("extra_info", {})

    @property
    def rounds(self) -> list[float]:
        """Seconds of every round: those that counted, or of a process that took turns all of them."""
        return [float(value) for value in self.entry.get("stats", {}).get("data", [])]

    @property
    def in_turns(self) -> bool:
        """Whether each round was timed next to the same round of another process."""
        return bool(self.facts.get("in_turns"))

    @property
    def left_out(self) -> int:
        """How many rounds passed before the benchmark ran steadily."""
        return int(self.facts.get("rounds_left_out", 0))


@dataclass(frozen=True)
class Run:
    """What one process measured, and on what; ``pair`` names it and the process that it took turns with, None alone."""

    benchmarks: Mapping[str, Benchmark]
    unmeasured: Mapping[str, str]
    disturbed: Mapping[str, str]
    environment: Mapping[str, Any]
    recorded: str
    ceilings: Mapping[str, float]
    pair: str | None = None


@dataclass(frozen=True)
class Recording:
    """Runs of one version of the code, in the order in which they were made."""

    label: str
    runs: tuple[Run, ...]

    @property
    def names(self) -> list[str]:
        """Every benchmark that any run was to measure."""
        return list(dict.fromkeys(name for run in self.runs for name in (*run.benchmarks, *run.unmeasured)))

    def seconds(self, name: str) -> list[float | None]:
        """The median of each run, None where it measured nothing."""
        return [run.benchmarks[name].seconds if name in run.benchmarks else None for run in self.runs]

    def peak_memory(self, name: str) -> int | None:
        """The most that any run recorded."""
        found = [run.benchmarks[name].peak_memory for run in self.runs if name in run.benchmarks]
        return max((peak for peak in found if peak is not None), default=None)

    def trouble(self, name: str) -> str | None:
        """Why the benchmark was not measured, or was disturbed, in some run."""
        for run in self.runs:
            why = run.unmeasured.get(name) or run.disturbed.get(name)
            if why:
                return why
        return None


def read(place: Path, label: str = "") -> Recording:
    """The recording in a file, or in all ``*.json`` files of a folder, ordered by the time at which they were made.

    Raises:
        InvalidResults: saying which file is no result of ours, and what is wrong with it.
    """
    if place.is_dir():
        files = sorted(place.glob("*.json"))
        if not files:
            raise InvalidResults(
                f"{place} holds no results: `conformance bench run --out {place}` writes them; a comparison's lie in `runs/base` "
                "and `runs/head` of its folder"
            )
    else:
        files = [place]
    runs = sorted((_read_file(path) for path in files), key=lambda run: run.recorded)
    return Recording(label or str(place), tuple(runs))


def run_of(document: Any, place: str) -> Run:
    """One process's results from the parsed JSON that it wrote.

    Raises:
        InvalidResults: see :func:`read`.
    """

    def wrong(what: str, right: str = "record it again with `conformance bench run`") -> InvalidResults:
        return InvalidResults(f"{place} {what}: {right}")

    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise wrong("is no result of pytest-benchmark")
    ours = document.get("conformance")
    if not isinstance(ours, dict):
        raise wrong("is pytest-benchmark's own, without the environment that a comparison needs")
    schema = ours.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise wrong(
            f"has schema {schema!r}, and this release reads {SCHEMA}",
            "use a newer release" if newer else "record it again with `conformance bench run`",
        )
    try:
        benchmarks = {entry["name"]: _benchmark(entry) for entry in document["benchmarks"]}
        points = [(point["name"], point["status"], point["why"]) for point in ours["points"]]
        return Run(
            benchmarks=benchmarks,
            unmeasured={name: f"{status}: {why}" for name, status, why in points if status != "measured"},
            disturbed={name: why for name, status, why in points if status == "measured" and why},
            environment=dict(ours["environment"]),
            recorded=str(ours["recorded"]),
            ceilings=dict(ours["ceilings"]),
            pair=ours.get("request", {}).get("pair"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise wrong(f"is not what it says it is ({type(error).__name__}: {error})") from None


def in_turns(base: Recording, head: Recording) -> tuple[Recording, Recording] | None:
    """The runs of two stored recordings that took turns with one another, in order; None where there are none.

    A run without its other half, which an interrupted comparison leaves, is left out.
    """
    before, after = ({run.pair: run for run in side.runs if run.pair} for side in (base, head))
    both = [pair for pair in before if pair in after]
    if not both:
        return None
    return (
        Recording(base.label, tuple(before[pair] for pair in both)),
        Recording(head.label, tuple(after[pair] for pair in both)),
    )


def why_not_comparable(
    base: Recording, head: Recording, *, allow_environment_change: bool = False
) -> str | None:
    """The difference between two recordings that makes a comparison meaningless; None where there is none."""
    environments = [run.environment for run in (*base.runs, *head.runs)]
    first = environments[0]
    for other in environments[1:]:
        changed = _differences(first.get("device", {}), other.get("device", {}))
        if changed:
            return f"they were taken on different devices ({changed})"
    if any(environment.get("device", {}).get("mig") for environment in environments):
        return "a MIG slice shares its memory bandwidth with others: time whole devices"
    for other in environments[1:]:
        changed = _differences(
            {**first, **first.get("packages", {}), "device": None, "packages": None},
            {**other, **other.get("packages", {}), "device": None, "packages": None},
        )
        if changed and not allow_environment_change:
            return f"the software changed beside the code ({changed}); --allow-environment-change compares them all the same"
    return None


def _read_file(path: Path) -> Run:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidResults(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InvalidResults(f"{path} is no JSON: record it again with `conformance bench run`") from None
    return run_of(document, str(path))


def _benchmark(entry: Mapping[str, Any]) -> Benchmark:
    seconds = float(entry["stats"]["median"])
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"a median of {seconds} s")
    missing = _FACTS - entry["extra_info"].keys()
    if missing:
        raise ValueError(f"{entry['name']} without {', '.join(sorted(missing))}")
    peak = entry["extra_info"].get("peak_memory_bytes")
    return Benchmark(str(entry["name"]), seconds, None if peak is None else int(peak), entry)


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {one.get(name)} and {other.get(name)}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    )


def labelled(label: str, documents: Sequence[tuple[Any, str]]) -> Recording:
    """A recording of documents that were just made, in the order in which they were."""
    return Recording(label, tuple(run_of(document, place) for document, place in documents))
