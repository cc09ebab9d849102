"""A second process that builds the subject: each rank of a training run builds its own, and all
must get the same.

What differs between two processes is the order of sets (strings hash anew in each), the time, and
all that depends on a process's number.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.assertions import NotApplicable, NotRun, getting_on
from conformance.errors import CannotAssess
from conformance.hub import HubView
from conformance.run import launch
from conformance.run.request import RunRequest
from conformance.subject.subject import BuiltElsewhere
from conformance.subject.target import resolve

OF_TWO_PROCESSES = "CON-18"
"""The clause that asks for the second process."""
_POLL_SECONDS = 0.05
_HASH_SEED = "PYTHONHASHSEED"
_SEEDS = ("1", "2", "3", "4")
_PROCESSES = {"quick": 1, "standard": 1, "thorough": 3}
"""How many processes each budget starts. A set of two strings has the same order in every second
one, a set of three in every sixth, and a larger one seldom."""
_ANSWER = "answer.json"


class Elsewhere:
    """The second processes of one run, one after the other; the first starts with `begin`, or when
    it is asked for."""

    def __init__(
        self,
        request: RunRequest,
        folder: Path,
        declarations: Mapping[str, Any] | None = None,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self._request = request
        self._folder = folder
        self._tables = (declarations, adapter)
        self._process: launch.Process | None = None

    def begin(self, number: int = 0) -> None:
        """Start a process, which works beside this one."""
        home = self._folder / str(number)
        view, marker = HubView(home / "hf"), os.environ.get(launch.RUN_MARKER, "")
        seeds = [seed for seed in _SEEDS if seed != os.environ.get(_HASH_SEED)]
        self._process = launch.start(
            __name__,
            [json.dumps(self._request.as_json()), json.dumps(self._tables), str(home)],
            log=home / "log",
            environment={
                **launch.environment_of_child(view, marker),
                _HASH_SEED: seeds[number],
            },
            pipes=[],
        )

    def __call__(self) -> Iterator[BuiltElsewhere]:
        """What each of the processes found.

        Raises:
            NotApplicable: it cannot be given the subject (a class of a notebook, say).
            NotRun: it was killed, or took longer than a step may take.
        """
        for number in range(_PROCESSES[self._request.budget]):
            if self._process is None:
                self.begin(number)
            assert self._process is not None
            home = self._folder / str(number)
            try:
                self._wait(self._process)
                answer = home / _ANSWER
                if not answer.exists():
                    how = launch.manner_of_death(self._process.returncode)
                    said = "; ".join(launch.last_lines(home / "log")[-2:])
                    raise NotRun(f"a second process {how}: {said}")
                found = json.loads(answer.read_text(encoding="utf-8"))
            finally:
                self.close()
            if "refused" in found:
                raise NotApplicable(f"a second process cannot be given it: {found['refused']}")
            yield BuiltElsewhere(found["traits"], found["raised"])

    def close(self) -> None:
        """End the process, if it is there."""
        if self._process is not None:
            launch.end(self._process)
            self._process = None

    def _wait(self, process: launch.Process) -> None:
        started = time.monotonic()
        while process.poll() is None:
            getting_on()
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - started > self._request.timeout:
                raise NotRun(f"a second process took more than {self._request.timeout:g} s")


def main() -> None:
    """Build and describe, in the process itself."""
    launch.end_with_parent()
    from conformance.run.session import open_session
    from conformance.suite.identity import traits_as_text

    request_json, tables, folder = sys.argv[1:]
    request = RunRequest.from_json(json.loads(request_json))
    declarations, adapter = json.loads(tables)
    found: dict[str, Any] = {"traits": {}, "raised": None}
    try:
        target = resolve(request.target, request.backbone_id)
    except CannotAssess as refusal:
        found = {"refused": str(refusal)}
    else:
        home = Path(folder) / "hf"
        try:
            with open_session(
                target, request, home, lambda *_: None, declarations, adapter
            ) as session:
                session.construct()
                found["traits"] = traits_as_text(session.subject)
        # The first process was not refused: what is refused here differs.
        except (Exception, SystemExit) as error:
            found["raised"] = f"{type(error).__name__}: {error}"
    (Path(folder) / _ANSWER).write_text(json.dumps(found), encoding="utf-8")
    # As in the first: what the subject left running must not keep this process.
    os._exit(0)
