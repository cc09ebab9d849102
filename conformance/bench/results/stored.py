"""Stored results: pytest-benchmark's JSON of one process with our additions, as a file or a
folder."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from conformance.bench.points import is_among
from conformance.errors import CannotAssess

SCHEMA = 1
"""The version of stored results that this release writes and reads."""
VERDICT = "verdict.json"
"""The file with a comparison's verdict, in the same folder as its runs."""

_FACTS = {
    "workload",
    "batch",
    "tokens",
    "tokens_per_second",
    "flops",
    "bytes_read",
    "flops_per_second",
}
"""What every benchmark records besides its times."""


_Told = TypeVar("_Told")


class InvalidResults(CannotAssess):
    """A stored result cannot be used. The message names the file, what is wrong with it, and what
    to do."""


@dataclass(frozen=True)
class Benchmark:
    """One point of one process: the median time of a round, the peak memory, and pytest-benchmark's
    entry."""

    name: str
    seconds: float
    peak_memory: int | None
    entry: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What we recorded besides the times: workload, attention, rates, clocks."""
        return self.entry.get("extra_info", {})

    @property
    def rounds(self) -> list[float]:
        """Seconds of every round that counted; of all rounds if the process took turns."""
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
    """What one process measured, and on what; `asked` is its
    `conformance.bench.request.BenchRequest` as JSON."""

    benchmarks: Mapping[str, Benchmark]
    unmeasured: Mapping[str, str]
    disturbed: Mapping[str, str]
    environment: Mapping[str, Any]
    recorded: str
    ceilings: Mapping[str, float]
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> str | None:
        """The name that it shares with its partner process; None if it ran alone."""
        return self.asked.get("pair")

    def only(self, wanted: Callable[[str], bool]) -> Run:
        """The run with only the benchmarks whose names are wanted."""

        def kept(part: Mapping[str, _Told]) -> dict[str, _Told]:
            return {name: told for name, told in part.items() if wanted(name)}

        return replace(
            self,
            benchmarks=kept(self.benchmarks),
            unmeasured=kept(self.unmeasured),
            disturbed=kept(self.disturbed),
        )


@dataclass(frozen=True)
class Recording:
    """Runs of one version of the code, in the order in which they were made."""

    label: str
    runs: tuple[Run, ...]

    @property
    def names(self) -> list[str]:
        """Every benchmark that any run was to measure."""
        return list(
            dict.fromkeys(name for run in self.runs for name in (*run.benchmarks, *run.unmeasured))
        )

    def seconds(self, name: str) -> list[float | None]:
        """The median of each run, None if it measured nothing."""
        return [
            run.benchmarks[name].seconds if name in run.benchmarks else None for run in self.runs
        ]

    @property
    def ceilings(self) -> Mapping[str, float]:
        """The device's measured ceilings, from the first process that measured them; empty if none
        did."""
        return next((run.ceilings for run in self.runs if run.ceilings), {})

    def typical_benchmark(self, name: str) -> Benchmark | None:
        """The benchmark in the median process; of an even number, in the slower of the middle
        two."""
        found = sorted(
            (run.benchmarks[name] for run in self.runs if name in run.benchmarks),
            key=lambda one: one.seconds,
        )
        return found[len(found) // 2] if found else None

    def typical(self, name: str) -> float | None:
        """The median of the runs' times."""
        found = [value for value in self.seconds(name) if value]
        return statistics.median(found) if found else None

    def only(self, targets: Sequence[str], workloads: Sequence[str]) -> Recording:
        """The benchmarks of these targets and workloads; empty stands for all.

        Raises:
            CannotAssess: if there is none.
        """

        def wanted(name: str) -> bool:
            return is_among(name, targets, workloads)

        if not any(map(wanted, self.names)):
            held = ", ".join(self.names) or "none"
            raise CannotAssess(
                f"{self.label} holds no benchmark of {', '.join((*targets, *workloads))}: it "
                f"holds {held}"
            )
        return Recording(self.label, tuple(run.only(wanted) for run in self.runs))

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
    """The recording in a file, or in all `*.json` files of a folder, ordered by the time they were
    made.

    Raises:
        InvalidResults: if a file is not a result of ours; the message says what is wrong with it.
    """
    if place.is_dir():
        files = sorted(path for path in place.glob("*.json") if path.name != VERDICT)
        if not files:
            sides = [
                side
                for side in ("runs/base", "runs/head", "base", "head")
                if (place / side).is_dir()
            ]
            raise InvalidResults(
                f"{place} holds no results of its own: name "
                f"{' or '.join(str(place / side) for side in sides)}"
                if sides
                else f"{place} holds no results: `conformance bench run --out {place}` writes them"
            )
    else:
        files = [place]
    runs = sorted(
        (run_of(read_document(path), str(path)) for path in files), key=lambda run: run.recorded
    )
    return Recording(label or str(place), tuple(runs))


def run_of(document: Any, place: str) -> Run:
    """One process's results from the parsed JSON that it wrote.

    Raises:
        InvalidResults: see `read`.
    """

    def wrong(
        what: str, right: str = "record it again with `conformance bench run`"
    ) -> InvalidResults:
        return InvalidResults(f"{place} {what}: {right}")

    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise wrong("is not a result of pytest-benchmark")
    if "inTurns" in document:
        raise wrong(
            "is the verdict of a comparison", "name the runs beside it, `runs/base` or `runs/head`"
        )
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
    asked = ours.get("request", {})
    try:
        benchmarks = {one.name: one for one in map(_benchmark, document["benchmarks"])}
        points = [
            (str(point["name"]), str(point["status"]), str(point["why"]))
            for point in ours["points"]
        ]
        return Run(
            benchmarks=benchmarks,
            unmeasured={
                name: f"{status}: {why}" for name, status, why in points if status != "measured"
            },
            disturbed={name: why for name, status, why in points if status == "measured" and why},
            environment=_environment(ours["environment"]),
            recorded=str(ours["recorded"]),
            ceilings={name: _positive(value, name) for name, value in ours["ceilings"].items()},
            asked={**asked, "pair": None if asked.get("pair") is None else str(asked["pair"])},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise wrong(f"is not what it says it is ({type(error).__name__}: {error})") from None


def read_document(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        InvalidResults: if the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidResults(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InvalidResults(
            f"{path} is not JSON: record it again with `conformance bench run`"
        ) from None


def _benchmark(entry: Mapping[str, Any]) -> Benchmark:
    seconds = _positive(entry["stats"]["median"], "a median", " s")
    if not entry["stats"]["data"]:
        raise ValueError(f"{entry['name']} without rounds")
    for value in entry["stats"]["data"]:
        _positive(value, "a round", " s")
    missing = _FACTS - entry["extra_info"].keys()
    if missing:
        raise ValueError(f"{entry['name']} without {', '.join(sorted(missing))}")
    for rate in ("tokens_per_second", "flops", "bytes_read", "flops_per_second"):
        _positive(entry["extra_info"][rate], rate)
    int(entry["extra_info"].get("rounds_left_out", 0))
    peak = entry["extra_info"].get("peak_memory_bytes")
    return Benchmark(str(entry["name"]), seconds, None if peak is None else int(peak), entry)


def _positive(value: Any, what: str, unit: str = "") -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{what} of {number}{unit}")
    return number


def _environment(told: Any) -> Mapping[str, Any]:
    if not all(isinstance(told.get(name, {}), Mapping) for name in ("device", "packages")):
        raise ValueError("an environment whose device and packages are not tables")
    return dict(told)


def labelled(label: str, documents: Sequence[tuple[Any, str]]) -> Recording:
    """A recording of documents just made, in that order."""
    return Recording(label, tuple(run_of(document, place) for document, place in documents))
