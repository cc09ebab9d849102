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
from collections.abc import Mapping
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
_ANSWER = "answer.json"


class Elsewhere:
    """The second process of one run; it starts with `begin`, or when it is first asked."""

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

    def begin(self) -> None:
        """Start the process, which works beside this one."""
        view, marker = HubView(self._folder / "hf"), os.environ.get(launch.RUN_MARKER, "")
        own_seed = os.environ.get(_HASH_SEED)
        self._process = launch.start(
            __name__,
            [json.dumps(self._request.as_json()), json.dumps(self._tables), str(self._folder)],
            log=self._folder / "log",
            environment={
                **launch.environment_of_child(view, marker),
                _HASH_SEED: "1" if own_seed != "1" else "2",
            },
            pipes=[],
        )

    def __call__(self) -> BuiltElsewhere:
        """What the process found.

        Raises:
            NotApplicable: it cannot be given the subject (a class of a notebook, say).
            NotRun: it was killed, or took longer than a step may take.
        """
        if self._process is None:
            self.begin()
        assert self._process is not None
        started = time.monotonic()
        try:
            while self._process.poll() is None:
                getting_on()
                time.sleep(_POLL_SECONDS)
                if time.monotonic() - started > self._request.timeout:
                    raise NotRun(f"a second process took more than {self._request.timeout:g} s")
            answer = self._folder / _ANSWER
            if not answer.exists():
                how = launch.manner_of_death(self._process.returncode)
                said = "; ".join(launch.last_lines(self._folder / "log")[-2:])
                raise NotRun(f"a second process {how}: {said}")
            found = json.loads(answer.read_text(encoding="utf-8"))
        finally:
            self.end()
        if "refused" in found:
            raise NotApplicable(f"a second process cannot be given it: {found['refused']}")
        return BuiltElsewhere(found["traits"], found["raised"])

    def end(self) -> None:
        """End the process, if it is there."""
        if self._process is not None:
            launch.end(self._process)
            self._process = None


def main() -> None:
    """Build and describe, in the process itself."""
    from conformance.run.session import open_session
    from conformance.suite.identity import traits_as_text

    launch.end_with_parent()
    request_json, tables, folder = sys.argv[1:]
    request = RunRequest.from_json(json.loads(request_json))
    declarations, adapter = json.loads(tables)
    found: dict[str, Any] = {"traits": {}, "raised": None}
    try:
        target = resolve(request.target, request.backbone_id)
        with open_session(
            target, request, Path(folder) / "hf", lambda *_: None, declarations, adapter
        ) as session:
            session.construct()
            try:
                found["traits"] = traits_as_text(session.subject)
            except (Exception, SystemExit) as error:
                found["raised"] = f"{type(error).__name__}: {error}"
    except CannotAssess as refusal:
        found = {"refused": str(refusal)}
    (Path(folder) / _ANSWER).write_text(json.dumps(found), encoding="utf-8")
    # As in the first: what the subject left running must not keep this process.
    os._exit(0)
