"""Making recordings: several processes of one version, or two versions in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conformance.bench.processes import RunFailed, Start, Worker, checkout, repository_of, workers
from conformance.bench.request import BenchRequest
from conformance.bench.results import Recording, labelled
from conformance.run_request import CannotAssess

#: Told before each process starts: what it is, its number, and how many there will be.
Announce = Callable[[str, int, int], None]
#: A fresh process each time meets the machine as a user would; forks of a warmed one start sooner.
PROCESSES = ("fresh", "forked")


@dataclass(frozen=True)
class Side:
    """One version of the code: ``label`` for people, ``code`` where it lies (None: what is installed)."""

    label: str
    code: Path | None


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
    with workers() as start:
        measurer = _Measurer(start, Side("installed", None), processes, timeout)
        for number in range(runs):
            announce("measuring", number + 1, runs)
            place = out / f"run-{number + 1:03d}.json"
            documents.append((measurer.measure(replace(request, memory=number == 0), place), str(place)))
    return labelled(str(out), documents)


def record_pairs(
    request: BenchRequest,
    base: Side,
    head: Side,
    pairs: int,
    out: Path,
    *,
    processes: str = "fresh",
    timeout: float,
    announce: Announce = lambda what, number, total: None,
) -> tuple[Recording, Recording]:
    """``pairs`` of processes of two versions in the order ABBA, so that a machine that slows down slows both alike."""
    documents: dict[str, list[Any]] = {"base": [], "head": []}
    with workers() as start:
        measurers = {
            name: _Measurer(start, side, processes, timeout)
            for name, side in (("base", base), ("head", head))
        }
        done = 0
        for pair in range(pairs):
            for name in ("base", "head") if pair % 2 == 0 else ("head", "base"):
                done += 1
                announce(f"{name}, pair {pair + 1} of {pairs}", done, 2 * pairs)
                place = out / f"{name}-{pair + 1:03d}.json"
                asked = replace(request, memory=pair == 0)
                documents[name].append((measurers[name].measure(asked, place), str(place)))
    return labelled(base.label, documents["base"]), labelled(head.label, documents["head"])


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
    inside = directory.resolve().relative_to(repository.resolve())
    with ExitStack() as stack:

        def side(ref: str | None) -> Side:
            if ref is None:
                return Side("working tree", directory)
            place, commit = stack.enter_context(checkout(ref, repository))
            if not (place / inside).is_dir():
                raise CannotAssess(f"{ref} has no folder {inside}, from which it was to be measured")
            return Side(
                f"{ref} ({commit[:10]})" if not commit.startswith(ref) else commit[:10], place / inside
            )

        yield side(base), side(head)


class _Measurer:
    """Measures one side, with one process for each measurement or one for all of them to be forked from."""

    def __init__(self, start: Start, side: Side, processes: str, timeout: float) -> None:
        self._label = side.label
        self._start: Callable[[], Worker] = lambda: start(side.code, timeout)
        self._code = side.code
        self._forks = processes == "forked"
        self._warmed: Worker | None = None

    def measure(self, request: BenchRequest, place: Path) -> dict[str, Any]:
        place.parent.mkdir(parents=True, exist_ok=True)
        asked = replace(request, code=str(self._code) if self._code else None)
        worker = self._warmed or self._start()
        try:
            return worker.measure(asked, place.resolve(), fork=self._forks)
        except RunFailed as failure:
            raise RunFailed(f"{self._label}: {failure}") from failure
        finally:
            if self._forks:
                self._warmed = worker
            else:
                worker.close()


def store(place: Path, value: Any) -> None:
    """Write JSON that people may read."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
