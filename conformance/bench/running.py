"""Making recordings: several processes of one version, or two versions in turn."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conformance.bench.processes import Code, RunFailed, Worker, Workers, answers, checkout, repository_of
from conformance.bench.request import BenchRequest
from conformance.bench.results import Recording, labelled
from conformance.errors import CannotAssess

#: Told before each process starts: what it is, its number, and how many there will be.
Announce = Callable[[str, int, int], None]


#: Pairs, or runs, of forks of the same warmed processes. The means of 16 pairs of forks of one set of them scattered by up to 1.4
#: times what their pairs' scatter accounts for (docs/benchmarks.md).
FORKED = 2


@dataclass(frozen=True)
class Side:
    """One version of the code: ``label`` for people, ``code`` where it lies (None: what is installed)."""

    label: str
    code: Code | None


class SideFailed(RunFailed):
    """The process of one version did not measure; ``side`` is ``base`` or ``head``."""

    def __init__(self, side: str, label: str, failure: RunFailed) -> None:
        Exception.__init__(self, f"{label}: {failure}")
        self.side = side


def record(
    request: BenchRequest,
    runs: int,
    out: Path,
    *,
    processes: str = "fresh",
    timeout: float,
    announce: Announce = lambda what, number, total: None,
) -> Recording:
    """``runs`` processes of what is installed, stored as ``run-001.json`` and so on in ``out``."""
    documents = []
    forks = processes == "forked"
    served = FORKED if forks else 1
    with Workers() as start:
        for number in range(runs):
            announce("measuring", number + 1, runs)
            place = _place(out, f"run-{number + 1:03d}.json")
            if number % served == 0:
                worker = start.one(None, timeout)
            worker.ask(replace(request, memory=number == 0), place, fork=forks)
            documents += [(document, str(place)) for document in answers([worker])]
            if number % served == served - 1:
                worker.close()
    return labelled(str(out), documents)


class Pairs:
    """Makes pairs of processes of two versions: the two of a pair measure at the same time, and take turns.

    Each version begins every other pair. With ``forked`` processes, those that they are forked from serve :data:`FORKED` pairs
    and are then started anew: what forks have in common with them (where memory lies) would else be the same in every pair, and
    pass for a difference between the versions.
    """

    def __init__(self, base: Side, head: Side, *, processes: str = "fresh", timeout: float) -> None:
        self._sides = {"base": base, "head": head}
        self._forks = processes == "forked"
        self._timeout = timeout
        self._workers = Workers()
        self._warmed: dict[str, tuple[tuple[Worker, Worker], int]] = {}

    def __enter__(self) -> Pairs:
        self._workers.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.__exit__(*exception)

    def measure(
        self, base: BenchRequest, head: BenchRequest, number: int, out: Path
    ) -> dict[str, tuple[Any, str]]:
        """Pair ``number``, counted from 0: by ``base`` and ``head``, the document and the file in ``out`` that holds it."""
        requests = {"base": base, "head": head}
        order = ("base", "head") if number % 2 == 0 else ("head", "base")
        if order[0] in self._warmed:
            two, served = self._warmed.pop(order[0])
        else:
            first, second = (self._sides[name].code for name in order)
            two, served = self._workers.pair(first, second, self._timeout), 0
        places = {name: _place(out / name, f"{number + 1:03d}.json") for name in order}
        try:
            measured = self._measured(requests, order, two, places, number)
        except RunFailed as failure:
            if failure.worker is None:
                raise
            side = order[two.index(failure.worker)]
            raise SideFailed(side, self._sides[side].label, failure) from failure
        if self._forks and served + 1 < FORKED:
            self._warmed[order[0]] = two, served + 1
        else:
            for worker in two:
                worker.close()
        return {name: (measured[name], str(places[name])) for name in requests}

    def _measured(
        self,
        requests: Mapping[str, BenchRequest],
        order: Sequence[str],
        two: Sequence[Worker],
        places: Mapping[str, Path],
        number: int,
    ) -> dict[str, Any]:
        pair = uuid.uuid4().hex
        for name, worker in zip(order, two, strict=True):
            code = self._sides[name].code
            asked = replace(
                requests[name],
                memory=number == 0,
                code=str(code.root) if code else None,
                repository=str(code.repository) if code else None,
                first=name == order[0],
                processor=_processor(requests[name].device),
                pair=pair,
            )
            worker.ask(asked, places[name], fork=self._forks)
        return dict(zip(order, answers(two), strict=True))


def record_pairs(
    request: BenchRequest,
    base: Side,
    head: Side,
    pairs: int,
    out: Path,
    *,
    processes: str = "fresh",
    timeout: float,
    what: str = "pair",
    announce: Announce = lambda what, number, total: None,
    head_request: BenchRequest | None = None,
) -> tuple[Recording, Recording]:
    """``pairs`` of processes of two versions, stored as ``001.json`` and so on in ``out/base`` and ``out/head``.

    Both are asked the same, unless there is a ``head_request``. Where one of the two measured nothing at all, the first pair is
    the last: what is misspelt or broken is told at once.
    """
    made = []
    before, after = (replace(one, pairs=pairs) for one in (request, head_request or request))
    with Pairs(base, head, processes=processes, timeout=timeout) as measuring:
        for number in range(pairs):
            announce(what, number + 1, pairs)
            made.append(measuring.measure(before, after, number, out))
            if not all(document["benchmarks"] for document, _ in made[-1].values()):
                break
    return recordings_of(base.label, head.label, made)


def recordings_of(
    base: str, head: str, pairs: Sequence[Mapping[str, tuple[Any, str]]]
) -> tuple[Recording, Recording]:
    """The two sides of ``pairs``, under the labels ``base`` and ``head``: each pair the document and its file, by side."""
    return labelled(base, [pair["base"] for pair in pairs]), labelled(head, [pair["head"] for pair in pairs])


def _processor(device: str) -> int | None:
    """The one that both processes of a pair keep to: two cores are as different as two moments."""
    if device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return None
    return max(os.sched_getaffinity(0))


def _place(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).resolve()


@contextmanager
def sides(base: str, head: str | None, directory: Path) -> Iterator[tuple[Side, Side]]:
    """Checkouts of two refs, for as long as the body runs; ``head`` None is the working tree, uncommitted changes included.

    Raises:
        CannotAssess: where there is no repository, or it has no such commit.
    """
    repository = repository_of(directory)
    if repository is None:
        raise CannotAssess(
            f"{base} is no file, and {directory} is in no git repository: run it inside one, or name stored results"
        )
    repository = repository.resolve()
    inside = directory.resolve().relative_to(repository)
    with ExitStack() as stack:

        def side(ref: str | None) -> Side:
            if ref is None:
                return Side("working tree", Code(directory.resolve(), repository, repository))
            place, commit = stack.enter_context(checkout(ref, repository))
            if not (place / inside).is_dir():
                raise CannotAssess(f"{ref} has no folder {inside}, from which it was to be measured")
            label = commit[:10] if commit.startswith(ref) else f"{ref} ({commit[:10]})"
            return Side(label, Code(place / inside, place, repository))

        yield side(base), side(head)
