"""Starts the children that make the checks, and gathers what each of them says.

Checks run in two processes at once, those that import torch apart from the others. A check that
crashes its process, or does not answer in time, is recorded as such, and the checks after it go on
in a new one.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.doctor import child
from conformance.doctor.checks import CHECKS, ON_TORCH
from conformance.hub import HubView
from conformance.hub.sources import cache_named_in
from conformance.run import launch

TORCH = "torch"
PATIENCE_SECONDS = 30.0
"""For one check. An import from a cold disk takes several seconds."""
_SLOW_SECONDS = 5.0
"""After which a person wants to know what is waited for."""
_POLL_SECONDS = 0.1
_TO_DIE_SECONDS = 1.0
"""For a process that has closed its pipe: it is at its end, most likely."""

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What came of a check: facts, or the trouble that it met, as a predicate (`raises …`)."""

    facts: Mapping[str, Any] | None
    trouble: str | None = None
    missing: bool = False
    """Whether the trouble is that the package is not installed."""
    late: bool = False
    """Whether it is that there was no answer in time."""
    untried: bool = False
    """Whether it is that another check had to succeed first."""


def examine(
    hub: Path | None,
    *,
    patience: float = PATIENCE_SECONDS,
    announce: Announce = lambda line: None,
) -> dict[str, Answer]:
    """Make all checks; return the answers by the name of the check.

    Args:
        hub: the root of the hub, None for the default one.
        patience: seconds that a check may take.
        announce: called with the name of a check that takes long.
    """
    places = {
        "hub": None if hub is None else str(hub.absolute()),
        "libraryCache": str(cache_named_in(os.environ)),
    }
    others = [name for name in CHECKS if name not in (TORCH, *ON_TORCH)]
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="conformance-doctor-", ignore_cleanup_errors=True
                )
            )
        )
        lanes = [
            stack.enter_context(_Lane(checks, places, scratch / str(number), patience, announce))
            for number, checks in enumerate(([TORCH, *ON_TORCH], others))
        ]
        _read_until_done(lanes)
    return {name: lane.answers[name] for name in CHECKS for lane in lanes if name in lane.answers}


def _read_until_done(lanes: Sequence[_Lane]) -> None:
    with selectors.DefaultSelector() as selector:
        while any(not lane.done for lane in lanes):
            for lane in lanes:
                if not lane.done and lane.pipe not in selector.get_map():
                    selector.register(lane.pipe, selectors.EVENT_READ, lane)
            ready = selector.select(_POLL_SECONDS)
            for key, _ in ready:
                if not key.data.read():
                    selector.unregister(key.fileobj)
                    key.data.go_on(key.data.manner_of_death())
            # Only what has nothing to say is late: an answer may have waited for us.
            for lane in lanes if not ready else ():
                if lane.is_late:
                    selector.unregister(lane.pipe)
                    lane.go_on(lane.lateness(), late=True)


class _Lane(ExitStack):
    """Checks that are made one after the other, and the process that is at it; closing the lane
    ends the process."""

    def __init__(
        self,
        checks: Iterable[str],
        places: Mapping[str, Any],
        home: Path,
        patience: float,
        announce: Announce,
    ) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = {}
        self.pipe = -1
        self._left = list(checks)
        self._places = places
        self._home = home
        self._patience = patience
        self._announce = announce
        self._begun: str | None = None
        self._has_spoken = False
        self._announced: str | None = None
        self._buffer = b""
        self._start()

    @property
    def done(self) -> bool:
        return not self._left

    @property
    def is_late(self) -> bool:
        """Whether the check under way has run out of time; one that takes long is announced."""
        if self.done:
            return False
        waited = time.monotonic() - self._last_word
        name = self._begun or self._left[0]
        if waited > _SLOW_SECONDS and self._announced != name:
            self._announced = name
            self._announce(name)
        return waited > self._patience

    def lateness(self) -> str:
        return f"does not answer within {self._patience:g} s"

    def manner_of_death(self) -> str:
        """How the process ended; it has closed its pipe, and may still be running."""
        try:
            ended = launch.manner_of_death(self._process.wait(_TO_DIE_SECONDS))
            return f"ends its process, which {ended}"
        except subprocess.TimeoutExpired:
            return "closes every file of its process"

    def read(self) -> bool:
        """Take in what has arrived; False at the end of the stream."""
        data = os.read(self.pipe, 1 << 16)
        self._last_word = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(line)
        return bool(data)

    def go_on(self, trouble: str, *, late: bool = False) -> None:
        """Record why the process did not go on, if it has not made all checks, and start another
        for those that are left."""
        self.close()
        if self.done:
            return
        if not self._has_spoken:
            # Whatever keeps Python from starting keeps it from every check.
            for name in self._left:
                told = f"cannot be tried: Python {trouble}"
                self.answers[name] = Answer(None, told, late=late, untried=True)
            self._left = []
            return
        self._note(self._begun or self._left[0], Answer(None, trouble, late=late))
        if self._left:
            self._start()

    def _start(self) -> None:
        self._begun, self._has_spoken, self._buffer = None, False, b""
        self._home.mkdir(parents=True, exist_ok=True)
        self.pipe, writing_end = os.pipe()
        self.callback(os.close, self.pipe)
        self._process = launch.start(
            child.__name__,
            [str(writing_end), json.dumps({"checks": self._left, "places": self._places})],
            log=self._home / "log",
            environment=launch.environment_of_child(HubView(self._home / "hf"), self._home.name),
            pipes=[writing_end],
        )
        self.callback(launch.end, self._process)
        os.close(writing_end)
        self._last_word = time.monotonic()

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            name = said["check"]
        except (ValueError, KeyError, TypeError):
            return  # written into our pipe by what was imported
        self._has_spoken = True
        if child.BEGUN in said:
            self._begun = name
        elif name in self._left:
            self._note(
                name,
                Answer(
                    said.get(child.FACTS), said.get(child.TROUBLE), bool(said.get(child.MISSING))
                ),
            )

    def _note(self, name: str, answer: Answer) -> None:
        self.answers[name] = answer
        self._left.remove(name)
        self._begun = None
        if name == TORCH and answer.facts is None:
            for other in self._left:
                told = "is not tried: torch cannot be imported"
                self.answers[other] = Answer(None, told, late=answer.late, untried=True)
            self._left = []
