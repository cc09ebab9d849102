"""Makes recordings: several processes of one version, or two versions in turns."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.bench.parent.checkouts import Side
from conformance.bench.parent.workers import RunFailed, Task, Workers
from conformance.bench.request import BenchRequest
from conformance.bench.results.stored import Recording, labelled

Announce = Callable[[str, int, int], None]
"""Called before each process starts, with what it is, its number, and the total."""


class SideFailed(RunFailed):
    """The process of one version did not measure; `side` is `base` or `head`."""

    def __init__(self, side: str, label: str, failure: RunFailed) -> None:
        Exception.__init__(self, f"{label}: {failure}")
        self.side = side


def record(
    request: BenchRequest,
    runs: int,
    out: Path,
    *,
    timeout: float,
    announce: Announce = lambda what, number, total: None,
) -> Recording:
    """Measure what is installed in `runs` processes, stored as `run-001.json` and so on in
    `out`."""
    documents = []
    with Workers(timeout) as workers:
        for number in range(runs):
            announce("measuring", number + 1, runs)
            place = _place(out, f"run-{number + 1:03d}.json")
            task = Task(replace(request, memory=number == 0), None, place)
            documents.append((workers.measure(task), str(place)))
    return labelled(str(out), documents)


class Pairs(ExitStack):
    """Runs pairs of processes, one per version, that measure at the same time and take turns.

    Each version begins every other pair.
    """

    def __init__(self, base: Side, head: Side, *, timeout: float) -> None:
        super().__init__()
        self._sides = {"base": base, "head": head}
        self._workers = self.enter_context(Workers(timeout))

    def measure(
        self, base: BenchRequest, head: BenchRequest, number: int, out: Path
    ) -> dict[str, tuple[Any, str]]:
        """Measure pair `number`, counted from 0. By `base` and `head`, return the document and its
        file in `out`.

        Raises:
            SideFailed: if the process of one version did not measure.
            RunFailed: if it is not known which of the two did not.
        """
        requests = {"base": base, "head": head}
        order = ("base", "head") if number % 2 == 0 else ("head", "base")
        pair = uuid.uuid4().hex
        tasks = {}
        for name in order:
            code = self._sides[name].code
            request = replace(
                requests[name],
                memory=number == 0,
                code=str(code.root) if code else None,
                repository=str(code.repository) if code else None,
                first=name == order[0],
                processor=_processor(requests[name].device),
                pair=pair,
            )
            tasks[name] = Task(request, code, _place(out / name, f"{number + 1:03d}.json"))
        try:
            measured = self._workers.measure_in_turns(*(tasks[name] for name in order))
        except RunFailed as failure:
            if failure.worker is None:
                raise
            side = next(name for name in order if tasks[name].out == failure.worker.out)
            raise SideFailed(side, self._sides[side].label, failure) from failure
        found = zip(order, measured, strict=True)
        return {name: (document, str(tasks[name].out)) for name, document in found}


def record_pairs(
    request: BenchRequest,
    base: Side,
    head: Side,
    pairs: int,
    out: Path,
    *,
    timeout: float,
    what: str = "pair",
    announce: Announce = lambda what, number, total: None,
    head_request: BenchRequest | None = None,
) -> tuple[Recording, Recording]:
    """Measure `pairs` pairs of processes, stored as `001.json` and so on in `out/base` and
    `out/head`.

    Both get the same request, unless there is a `head_request`. If one of the two measured nothing
    at all, that pair is the last: something misspelt or broken is reported at once.

    Raises:
        RunFailed: as `Pairs.measure`.
    """
    made = []
    before, after = (replace(one, pairs=pairs) for one in (request, head_request or request))
    with Pairs(base, head, timeout=timeout) as measuring:
        for number in range(pairs):
            announce(what, number + 1, pairs)
            made.append(measuring.measure(before, after, number, out))
            if not all(document["benchmarks"] for document, _ in made[-1].values()):
                break
    one, other = (
        labelled(side.label, [pair[name] for pair in made])
        for name, side in (("base", base), ("head", head))
    )
    return one, other


def _processor(device: str) -> int | None:
    """The processor that both processes of a pair keep to: two cores differ as much as two
    moments."""
    if device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return None
    return max(os.sched_getaffinity(0))


def _place(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).resolve()
