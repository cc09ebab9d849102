"""Which processes a pair is measured by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conformance.bench.parent.checkouts import Side
from conformance.bench.parent.recording import Pairs, SideFailed
from conformance.bench.parent.workers import RunFailed, Task, Workers
from conformance.bench.request import BenchRequest

SIDES = Side("before", None), Side("after", None)
REQUEST = BenchRequest(("an-id",))


def test_each_version_begins_every_other_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Task, Task]] = []

    def in_turns(self: Workers, first: Task, second: Task) -> tuple[str, str]:
        measured.append((first, second))
        return str(first.out), str(second.out)

    monkeypatch.setattr(Workers, "measure_in_turns", in_turns)
    with Pairs(*SIDES, timeout=1.0) as pairs:
        found = [pairs.measure(REQUEST, REQUEST, number, tmp_path) for number in range(4)]
    assert [first.out.parent.name for first, _ in measured] == ["base", "head", "base", "head"]
    assert all(first.request.first and second.request.first is False for first, second in measured)
    assert all(first.request.pair == second.request.pair for first, second in measured)
    assert len({first.request.pair for first, _ in measured}) == 4
    # Memory is counted in the first pair alone: it is the same number each time.
    assert [first.request.memory for first, _ in measured] == [True, False, False, False]
    for pair in found:
        assert {side: (document, place) for side, (document, place) in pair.items()} == {
            side: (str(tmp_path / side / Path(place).name),) * 2
            for side, (_, place) in pair.items()
        }


@pytest.mark.parametrize(("failing", "side"), [(0, "base"), (1, "head")])
def test_the_version_that_failed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, side: str
) -> None:
    class Failed:
        def __init__(self, out: Path) -> None:
            self.out = out

        def last_words(self) -> str:
            return ""

    def in_turns(self: Workers, *tasks: Task) -> Any:
        raise RunFailed("it died", Failed(tasks[failing].out))  # type: ignore[arg-type]

    monkeypatch.setattr(Workers, "measure_in_turns", in_turns)
    with Pairs(*SIDES, timeout=1.0) as pairs, pytest.raises(SideFailed) as failure:
        pairs.measure(REQUEST, REQUEST, 0, tmp_path)
    assert failure.value.side == side
