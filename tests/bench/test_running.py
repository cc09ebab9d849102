"""Which processes a pair is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conformance.bench import running
from conformance.bench.request import BenchRequest
from conformance.bench.running import FORKED, Pairs, Side


class FakeWorker:
    def __init__(self) -> None:
        self.served: list[int] = []
        self.closed = False

    def ask(self, request: BenchRequest, out: Path, *, fork: bool) -> None:
        assert not self.closed
        self.served.append(int(out.stem))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorker]:
    workers: list[FakeWorker] = []

    def pair(*_: Any) -> tuple[FakeWorker, FakeWorker]:
        workers.extend((FakeWorker(), FakeWorker()))
        return workers[-2], workers[-1]

    def answers(asked: Sequence[FakeWorker]) -> list[int]:
        return [0 for _ in asked]

    monkeypatch.setattr(running.Workers, "pair", pair)
    monkeypatch.setattr(running, "answers", answers)
    return workers


@pytest.mark.parametrize(
    ("processes", "served"),
    [
        ("fresh", [[1], [2], [3], [4], [5], [6]]),
        # Base begins the odd ones, counted from 1, head the even ones: each order has processes of its own.
        ("forked", [[1, 3], [2, 4], [5], [6]]),
    ],
)
def test_warmed_processes_serve_few_pairs(
    started: list[FakeWorker], tmp_path: Path, processes: str, served: list[list[int]]
) -> None:
    assert FORKED == 2
    side = Side("installed", None)
    request = BenchRequest(("an-id",))
    with Pairs(side, side, processes=processes, timeout=1.0) as pairs:
        for number in range(6):
            pairs.measure(request, request, number, tmp_path)
    assert [worker.served for worker in started[::2]] == [worker.served for worker in started[1::2]] == served
    assert [worker.closed for worker in started] == [
        processes == "fresh" or len(worker.served) == FORKED for worker in started
    ]
