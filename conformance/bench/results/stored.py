"""Stored results: pytest-benchmark's JSON of one process with our additions, as a file or a
folder."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conformance.bench.points import is_among
from conformance.errors import CannotAssess

SCHEMA = 1
"""The version of stored results that this release writes and reads."""
_AGAIN = "record it again with `conformance bench run`"
VERDICT = "verdict.json"
"""The file with a comparison's verdict, in the same folder as its runs."""

_RATES = ("tokens_per_second", "flops", "bytes_read", "flops_per_second")
_FACTS = {"workload", "batch", "tokens", *_RATES}
"""What every benchmark records besides its times."""


class InvalidResults(CannotAssess):
    """A stored result cannot be used. The message names the file, what is wrong with it, and what
    to do."""


@dataclass(frozen=True)
class Benchmark:
    """One point of one process: the median time of a round, and the peak memory.

    `rounds` are the seconds of every round that counted, of all rounds if the process took turns;
    `in_turns` says whether each was timed next to the same round of another process, `left_out` how
    many passed before the benchmark ran steadily. `facts` is what we recorded besides the times:
    workload, attention, rates, clocks.
    """

    name: str
    seconds: float
    peak_memory: int | None
    rounds: Sequence[float] = field(repr=False)
    in_turns: bool
    left_out: int
    facts: Mapping[str, Any] = field(repr=False)


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
        kept: dict[str, Any] = {
            part: {name: told for name, told in getattr(self, part).items() if wanted(name)}
            for part in ("benchmarks", "unmeasured", "disturbed")
        }
        return replace(self, **kept)


@dataclass(frozen=True)
class Recording:
    """Runs of one version of the code, in the order in which they were made."""

    label: str
    runs: tuple[Run, ...]

    @property
    def names(self) -> list[str]:
        """Every benchmark that any run was to measure."""
        names = (name for run in self.runs for name in (*run.benchmarks, *run.unmeasured))
        return list(dict.fromkeys(names))

    def measured(self, name: str) -> list[Benchmark]:
        """The benchmark in each run that measured it."""
        return [run.benchmarks[name] for run in self.runs if name in run.benchmarks]

    def seconds(self, name: str) -> list[float | None]:
        """The median of each run, None if it measured nothing."""
        found = (run.benchmarks.get(name) for run in self.runs)
        return [one.seconds if one else None for one in found]

    @property
    def ceilings(self) -> Mapping[str, float]:
        """The device's measured ceilings, from the first process that measured them; empty if none
        did."""
        return next((run.ceilings for run in self.runs if run.ceilings), {})

    def typical_benchmark(self, name: str) -> Benchmark | None:
        """The benchmark in the median process; of an even number, in the slower of the middle
        two."""
        found = sorted(self.measured(name), key=lambda one: one.seconds)
        return found[len(found) // 2] if found else None

    def typical(self, name: str) -> float | None:
        """The median of the runs' times."""
        found = [one.seconds for one in self.measured(name)]
        return statistics.median(found) if found else None

    def only(self, targets: Sequence[str], workloads: Sequence[str]) -> Recording:
        """The benchmarks of these targets and workloads; empty stands for all.

        Raises:
            CannotAssess: if there is none.
        """

        def wanted(name: str) -> bool:
            return is_among(name, targets, workloads)

        if not any(map(wanted, self.names)):
            asked, held = ", ".join((*targets, *workloads)), ", ".join(self.names) or "none"
            raise CannotAssess(f"{self.label} holds no benchmark of {asked}: it holds {held}")
        return Recording(self.label, tuple(run.only(wanted) for run in self.runs))

    def peak_memory(self, name: str) -> int | None:
        """The most that any run recorded."""
        found = [one.peak_memory for one in self.measured(name)]
        return max((peak for peak in found if peak is not None), default=None)

    def trouble(self, name: str) -> str | None:
        """Why the benchmark was not measured, or was disturbed, in some run."""
        found = (run.unmeasured.get(name) or run.disturbed.get(name) for run in self.runs)
        return next(filter(None, found), None)


def read(place: Path, label: str = "") -> Recording:
    """The recording in a file, or in all `*.json` files of a folder, ordered by the time they were
    made.

    Raises:
        InvalidResults: if a file is not a result of ours; the message says what is wrong with it.
    """
    files = [place]
    if place.is_dir():
        files = sorted(path for path in place.glob("*.json") if path.name != VERDICT)
    if not files:
        sides = [place / side for side in ("runs/base", "runs/head", "base", "head")]
        if found := " or ".join(str(side) for side in sides if side.is_dir()):
            raise InvalidResults(f"{place} holds no results of its own: name {found}")
        raise InvalidResults(
            f"{place} holds no results: `conformance bench run --out {place}` writes them"
        )
    runs = [run_of(read_document(path), str(path)) for path in files]
    return Recording(label or str(place), tuple(sorted(runs, key=lambda run: run.recorded)))


def run_of(document: Any, place: str) -> Run:
    """One process's results from the parsed JSON that it wrote.

    Raises:
        InvalidResults: see `read`.
    """

    def wrong(what: str, right: str = _AGAIN) -> InvalidResults:
        return InvalidResults(f"{place} {what}: {right}")

    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise wrong("is not a result of pytest-benchmark")
    if "inTurns" in document:
        beside = "name the runs beside it, `runs/base` or `runs/head`"
        raise wrong("is the verdict of a comparison", beside)
    ours = document.get("conformance")
    if not isinstance(ours, dict):
        raise wrong("is pytest-benchmark's own, without the environment that a comparison needs")
    schema = ours.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        mend = "use a newer release" if newer else _AGAIN
        raise wrong(f"has schema {schema!r}, and this release reads {SCHEMA}", mend)
    asked = ours.get("request", {})
    try:
        keys = ("name", "status", "why")
        points = [[str(point[key]) for key in keys] for point in ours["points"]]
        return Run(
            benchmarks={one.name: one for one in map(_benchmark, document["benchmarks"])},
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
        raise InvalidResults(f"{path} is not JSON: {_AGAIN}") from None


def _benchmark(entry: Mapping[str, Any]) -> Benchmark:
    stats, facts = entry["stats"], entry["extra_info"]
    seconds = _positive(stats["median"], "a median", " s")
    if not stats["data"]:
        raise ValueError(f"{entry['name']} without rounds")
    rounds = [_positive(value, "a round", " s") for value in stats["data"]]
    if missing := _FACTS - facts.keys():
        raise ValueError(f"{entry['name']} without {', '.join(sorted(missing))}")
    for rate in _RATES:
        _positive(facts[rate], rate)
    peak = facts.get("peak_memory_bytes")
    return Benchmark(
        str(entry["name"]), seconds, None if peak is None else int(peak), rounds,
        bool(facts.get("in_turns")), int(facts.get("rounds_left_out", 0)), facts,
    )  # fmt: skip


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
