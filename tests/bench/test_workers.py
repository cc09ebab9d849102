"""Who is to blame when one of two processes that take turns does not measure."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.bench.parent import workers
from conformance.bench.parent.workers import RunFailed, documents


class Stub:
    """A worker of which only the pipe is real: `says` a line after so many seconds, or closes it
    (None)."""

    def __init__(self, name: str, timeout: float = 20.0) -> None:
        self.name, self.timeout = name, timeout
        self.out = Path(os.devnull)
        self.answers, self._end = os.pipe()

    def says(self, answer: dict[str, Any] | None, after: float = 0.0) -> None:
        def act() -> None:
            time.sleep(after)
            if answer is not None:
                os.write(self._end, json.dumps(answer).encode() + b"\n")
            else:
                os.close(self._end)
                self._end = -1

        threading.Thread(target=act).start()

    def manner_of_death(self) -> str:
        return "died"

    def last_words(self) -> str:
        return f" [{self.name}]"

    def close(self) -> None:
        for pipe in (self.answers, self._end):
            if pipe >= 0:
                os.close(pipe)


@pytest.fixture
def two() -> Iterator[list[Stub]]:
    made = [Stub("base"), Stub("head")]
    yield made
    time.sleep(0.1)
    for stub in made:
        stub.close()


def blamed(two: list[Stub]) -> tuple[str | None, str]:
    with pytest.raises(RunFailed) as failure:
        documents(two)  # type: ignore[arg-type]
    worker: Any = failure.value.worker
    return worker and worker.name, str(failure.value)


@pytest.mark.parametrize("crash", [None, {"error": "out of memory"}])
@pytest.mark.parametrize("crashed", [0, 1])
def test_not_the_one_that_was_left_alone(
    two: list[Stub], crash: dict[str, Any] | None, crashed: int
) -> None:
    two[1 - crashed].says({"partner": "stopped"})
    two[crashed].says(crash, after=0.3)
    assert blamed(two)[0] == two[crashed].name


def test_the_one_that_does_not_pass_the_turn(
    two: list[Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LAST_WORDS", 0.2)
    two[0].says({"partner": "stopped"})
    assert blamed(two) == (
        "head",
        "the process did not pass the turn: it hangs, or was killed [head]",
    )


def test_nobody_where_both_were_too_slow(two: list[Stub], tmp_path: Path) -> None:
    for stub in two:
        stub.timeout = 0.2
    assert blamed(two) == (None, "nothing was measured within 0.2 s (raise --timeout)")
    two[0].says({"out": str(tmp_path)})
    assert blamed(two)[0] == "head"
