"""Processes that measure, one request each, alone or two in turns."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.bench.parent.checkouts import Code
from conformance.bench.request import HOME, BenchRequest
from conformance.errors import CannotAssess
from conformance.hub import HubView
from conformance.run import launch

_PATIENCE = 0.5
"""The share of a process's time limit that it waits for one turn. A process that takes longer over
a turn hangs; a slow one does not."""
_LAST_WORDS = 10.0
"""Seconds that a process has to report its end, once its partner has missed it."""


class RunFailed(Exception):
    """A process that was to measure crashed, hung or raised.

    `worker` is the one that failed, and the message ends with its last words; None if it is not
    known which of two failed.
    """

    def __init__(self, message: str, worker: Worker | None) -> None:
        super().__init__(message + (worker.last_words() if worker else ""))
        self.worker = worker


@dataclass(frozen=True)
class Task:
    """What one process measures: a request, for one version of the code (None: what is
    installed)."""

    request: BenchRequest
    code: Code | None
    out: Path


class Worker(ExitStack):
    """A process that measures one task; closing it ends the process and whatever that started.
    `turns` are the pipes that carry the turn from and to its partner, -1 without one."""

    def __init__(self, home: Path, task: Task, timeout: float, turns: tuple[int, int]) -> None:
        super().__init__()
        home.mkdir(parents=True)
        self._log = home / "log"
        self.timeout = timeout
        self.out = task.out
        self.answers, writing_end = os.pipe()
        self.callback(os.close, self.answers)
        pipes = [writing_end, *turns]
        asked = {
            "request": task.request.as_json(),
            "out": str(task.out),
            "patience": _PATIENCE * timeout,
            "places": task.code.places if task.code else [],
        }
        self._process = launch.start(
            "conformance.bench.child.process",
            [json.dumps(asked), *map(str, pipes)],
            log=self._log,
            environment=_environment(home),
            pipes=[pipe for pipe in pipes if pipe >= 0],
        )
        self.callback(launch.end, self._process)
        os.close(writing_end)

    def manner_of_death(self) -> str:
        """How it ended, after it closed its pipe; waits in case only the pipe is closed."""
        with suppress(subprocess.TimeoutExpired):
            return launch.manner_of_death(self._process.wait(_LAST_WORDS))
        return "said nothing more"

    def last_words(self) -> str:
        """The end of what it wrote to its standard output and error."""
        return "".join(f"\n    {line}" for line in launch.last_lines(self._log))


class Workers(ExitStack):
    """Starts workers; all of them are gone when the `with` block ends, however it ends."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self._count = 0
        scratch = tempfile.TemporaryDirectory(
            prefix="conformance-bench-", ignore_cleanup_errors=True
        )
        self._scratch = Path(self.enter_context(scratch))

    def measure(self, task: Task) -> Any:
        """Run one process and return its document.

        Raises:
            CannotAssess, RunFailed: as `documents`.
        """
        (document,) = self._measured(self._start(task, (-1, -1)))
        return document

    def measure_in_turns(self, first: Task, second: Task) -> tuple[Any, Any]:
        """Run two processes in turns and return their documents.

        Raises:
            CannotAssess, RunFailed: as `documents`.
        """
        (from_first, to_second), (from_second, to_first) = os.pipe(), os.pipe()
        try:
            two = (
                self._start(first, (from_second, to_second)),
                self._start(second, (from_first, to_first)),
            )
        finally:
            for pipe in (from_first, to_second, from_second, to_first):
                os.close(pipe)
        one, other = self._measured(*two)
        return one, other

    def _start(self, task: Task, turns: tuple[int, int]) -> Worker:
        self._count += 1
        home = self._scratch / str(self._count)
        return self.enter_context(Worker(home, task, self._timeout, turns))

    def _measured(self, *workers: Worker) -> list[Any]:
        found = documents(workers)
        for worker in workers:
            worker.close()
        return found


def documents(workers: Sequence[Worker]) -> list[Any]:
    """Wait for all workers and return their documents. The first failure ends the wait.

    When one of two partners dies, the other only reports that it was abandoned; the one that died
    is blamed.

    Raises:
        CannotAssess: if a request cannot be met.
        RunFailed: if a process crashed, hung or raised.
    """
    waiting = {worker.answers: worker for worker in workers}
    said = dict.fromkeys(waiting, b"")
    deadline = time.monotonic() + max(worker.timeout for worker in workers)
    abandoning: Worker | None = None
    with selectors.DefaultSelector() as selector:
        for pipe in waiting:
            selector.register(pipe, selectors.EVENT_READ)
        while waiting:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _out_of_time(list(waiting.values()), abandoning)
            for pipe in (key.fd for key, _ in ready):
                worker, data = waiting[pipe], os.read(pipe, 1 << 16)
                if not data:
                    raise RunFailed(f"the process that measured {worker.manner_of_death()}", worker)
                said[pipe] += data
                if not said[pipe].endswith(b"\n"):
                    continue
                selector.unregister(pipe)
                del waiting[pipe]
                if _was_abandoned(json.loads(said[pipe]), worker):
                    others = (other for other in workers if other is not worker)
                    abandoning = abandoning or next(others)
                    deadline = min(deadline, time.monotonic() + _LAST_WORDS)
    if abandoning:
        raise RunFailed("the process measured, but did not pass the turn", abandoning)
    return [json.loads(worker.out.read_text(encoding="utf-8")) for worker in workers]


def _out_of_time(waiting: Sequence[Worker], abandoning: Worker | None) -> RunFailed:
    if abandoning:
        return RunFailed("the process did not pass the turn: it hangs, or was killed", abandoning)
    message = f"nothing was measured within {waiting[0].timeout:g} s (raise --timeout)"
    return RunFailed(message, waiting[0] if len(waiting) == 1 else None)


def _was_abandoned(answer: dict[str, Any], worker: Worker) -> bool:
    if "refused" in answer:
        raise CannotAssess(answer["refused"])
    if "error" in answer:
        raise RunFailed(answer["error"], worker)
    return "partner" in answer


def _environment(home: Path) -> dict[str, str]:
    inherited = launch.environment_of_child(HubView(home / "hf"), home.name)
    # Pytest settings of the user, or of a pytest around us, could silently drop or disable
    # benchmarks.
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTEST_")}
    return {**kept, HOME: str(home), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
