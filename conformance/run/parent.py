"""The parent's side of a run: starts the child, reads its stream, bounds its time and memory, and
assumes nothing: a clause whose outcome never arrived is *not-run*."""

from __future__ import annotations

import functools
import json
import os
import selectors
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from conformance.catalogue import Requirement, catalogue
from conformance.errors import CannotAssess
from conformance.hub import HubView
from conformance.hub.recipe import UnknownRecipe
from conformance.run import events, launch
from conformance.run.environment import memory
from conformance.run.events import OnEvent
from conformance.run.request import RunRequest
from conformance.verdict.outcomes import UNMET, Assessment, ClauseOutcome, Outcome

_POLL_SECONDS = 0.1
_DRAIN_SECONDS = 2.0
_TIMEOUTS = 10
"""So many timeouts may a step take that shows signs of life."""


Start = Callable[..., launch.Process]
"""Starts a child on its arguments, with the keywords `log`, `environment` and `pipes`."""
_start_anew: Start = functools.partial(launch.start, "conformance.run.child")


def run(
    request: RunRequest,
    on_event: OnEvent = lambda event: None,
    *,
    start: Start = _start_anew,
    on_poll: Callable[[], None] = lambda: None,
) -> Assessment:
    """Judge `request.target` in child processes, each a new interpreter unless `start` makes it.

    `on_poll` is called several times a second; what it raises ends the run, as what `on_event`
    raises does.

    Raises:
        CannotAssess: if the target cannot be resolved.
        UnknownRecipe: if a model has neither a recipe nor published files here.
        KeyboardInterrupt: passed on once all children are gone.
    """
    started = time.monotonic()
    expected = request.clauses
    marker = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as scratch:
        children = [
            _Child(request, share, Path(scratch) / str(number), marker, start)
            for number, share in enumerate(_shares(expected, request.jobs))
        ]
        try:
            _read_until_done(children, on_event, on_poll)
        finally:
            for child in children:
                child.kill()
            _kill_marked(marker)
    refusal = next((child.refusal for child in children if child.refusal), None)
    if refusal and refusal.unknown_model:
        raise UnknownRecipe(refusal.message, refusal.unknown_model)
    if refusal:
        raise CannotAssess(refusal.message)
    return _assessment(request, expected, children, time.monotonic() - started)


_COSTS = {"CON-11": 17, "GEN-05": 15, "CON-16": 12, "CON-17": 11, "FWD-14": 113, "FWD-15": 33}
"""How many times as long as most clauses, which take 0.1 s, the longest take (Mistral's probe, the
standard budget)."""


def _shares(expected: Sequence[str], jobs: int) -> list[list[str]]:
    """The clauses dealt out over up to `jobs` children, neighbours together, so that no share costs
    much more than another; what a share's clauses need comes on top (`_with_needs`)."""
    costs = [_COSTS.get(clause, 1) for clause in expected]
    most = max(-(-sum(costs) // jobs), *costs) if costs else 0
    while len(dealt := _dealt(expected, most)) > jobs:
        most += 1
    return dealt


def _dealt(expected: Sequence[str], most: int) -> list[list[str]]:
    """Shares of neighbours that cost no more than `most`."""
    dealt: list[list[str]] = [[]]
    left = most
    for clause in expected:
        cost = _COSTS.get(clause, 1)
        if cost > left:
            dealt.append([])
            left = most
        dealt[-1].append(clause)
        left -= cost
    return dealt


def _read_until_done(
    children: Sequence[_Child], on_event: OnEvent, on_poll: Callable[[], None]
) -> None:
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        while any(not child.done for child in children):
            for key, _ in selector.select(_POLL_SECONDS):
                if not key.data.read(on_event):
                    selector.unregister(key.fileobj)
            for child in children:
                child.supervise(on_event)
            on_poll()


class _Child:
    """One child process: its share of the clauses, what it has said so far, and how it ended."""

    def __init__(
        self, request: RunRequest, share: Sequence[str], home: Path, marker: str, start: Start
    ) -> None:
        self.share = list(share)
        self.facts: events.Facts | None = None
        self.outcomes: dict[str, ClauseOutcome] = {}
        self.refusal: events.Refused | None = None
        self.breakdown: str | None = None
        self.done = False
        self._step = "starting"
        self._in_progress: str | None = None
        self._timeout = request.timeout
        self._memory_limit = request.memory_limit or _three_quarters_of_memory()
        self._footer = False
        self._buffer = b""
        home.mkdir(parents=True)
        self._log = home / "log"
        view = HubView(home / "hf")
        own = replace(request, only=tuple(_with_needs(share)))
        self.pipe, writing_end = os.pipe()
        self._process = start(
            [str(writing_end), json.dumps(own.as_json()), str(home / "hf")],
            log=self._log,
            environment=launch.environment_of_child(view, marker),
            pipes=[writing_end],
        )
        os.close(writing_end)
        os.set_blocking(self.pipe, False)
        self._last_word = self._last_event = time.monotonic()

    def read(self, on_event: OnEvent) -> bool:
        """Take in what has arrived; False at the end of the stream."""
        try:
            data = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._last_word = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in filter(None, lines):  # an empty one is a sign of life
            self._take(line, on_event)
        return True

    def supervise(self, on_event: OnEvent) -> None:
        """Notice the end, a hang, or too much memory."""
        if self.done:
            return
        if self._footer:
            self.kill()
            self.done = True
        elif self._process.poll() is not None:
            self._drain(on_event)
            if not self._footer:
                self._end(
                    f"the subject's process {launch.manner_of_death(self._process.returncode)}"
                )
            self.done = True
        elif (hung := self._hung()) is not None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(_POLL_SECONDS)
            self._end(f"{hung} (raise --timeout if that is too strict)")
        elif (resident := _resident_bytes(self._process.pid)) > self._memory_limit:
            self._end(
                f"the subject's process used {resident / 2**30:.1f} GiB of memory, "
                f"more than its limit of {self._memory_limit / 2**30:.1f} GiB"
            )

    def _hung(self) -> str | None:
        now = time.monotonic()
        if now - self._last_word > self._timeout:
            return f"nothing happened for {self._timeout:g} s"
        if now - self._last_event > _TIMEOUTS * self._timeout:
            return f"there was no end of it in {_TIMEOUTS * self._timeout:g} s"
        return None

    def kill(self) -> None:
        """End the child and whatever runs in its process group."""
        launch.end(self._process)

    def log_tail(self) -> str:
        """The last lines that the subject wrote to its standard output and error."""
        return "\n".join(launch.last_lines(self._log))

    def _drain(self, on_event: OnEvent) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline and not self._footer:
            before = self._last_word
            if not self.read(on_event) or self._last_word == before:
                return

    def _take(self, line: bytes, on_event: OnEvent) -> None:
        try:
            event = events.parse(line)
        except ValueError:
            self._end(f"the stream of results was garbled: {line[:80]!r}")
            return
        self._last_event = time.monotonic()
        self._note(event)
        is_shown = isinstance(event, (events.Phase, events.Loaded)) or (
            isinstance(event, (events.Begin, events.Judged)) and event.id in self.share
        )
        if is_shown:
            on_event(event)

    def _note(self, event: events.Event) -> None:
        match event:
            case events.Footer():
                self._footer = event.outcomes == len(self.outcomes)
            case events.Refused():
                self.refusal = event
            case events.Facts():
                self.facts = event
            case events.Phase():
                self._step = str(event)
            case events.Begin():
                self._in_progress = event.id
                self._step = f"judging {event.id}"
            case events.Judged():
                self._in_progress = None
                self.outcomes[event.id] = event.outcome

    def _end(self, how: str) -> None:
        if self.done:
            return
        self.kill()
        self.done = True
        self.breakdown = f"while {self._step}, {how}"
        if self._step.startswith(("starting", "resolving")):
            self.refusal = events.Refused(self.breakdown)
        if self._in_progress is not None:
            requirement = catalogue()[self._in_progress]
            self.outcomes[requirement.id] = _not_run(requirement, self.breakdown, self.log_tail())


def _with_needs(share: Iterable[str]) -> list[str]:
    """`share` and, before them, whatever they need: a child judges root causes for itself."""
    known = catalogue()
    closed: dict[str, None] = {}

    def add(clause_id: str) -> None:
        for need in known[clause_id].needs:
            add(need)
        closed.setdefault(clause_id)

    for clause_id in share:
        add(clause_id)
    return list(closed)


def _assessment(
    request: RunRequest, expected: Sequence[str], children: Sequence[_Child], seconds: float
) -> Assessment:
    known = catalogue()
    breakdown = next((child.breakdown for child in children if child.breakdown), None)
    said = {
        clause: found
        for child in children
        for clause, found in child.outcomes.items()
        if clause in child.share
    }
    # A partial run also reports why it could not judge: the clauses that were needed and are not
    # met.
    causes = {
        clause: found
        for child in children
        for clause, found in child.outcomes.items()
        if clause not in expected and found.outcome in UNMET
    }
    outcomes = tuple(causes.values()) + tuple(
        said.get(clause) or _not_run(known[clause], breakdown or "no outcome was reported")
        for clause in expected
    )
    facts = next((child.facts for child in children if child.facts), None)
    return Assessment.of(request, facts, outcomes, seconds=seconds, breakdown=breakdown)


def _not_run(requirement: Requirement, why: str, log: str = "") -> ClauseOutcome:
    return ClauseOutcome(
        id=requirement.id,
        level=requirement.level,
        profile=requirement.profile,
        needs=requirement.needs,
        outcome=Outcome.NOT_RUN,
        summary=why,
        evidence={"log": log} if log else {},
    )


def _three_quarters_of_memory() -> int:
    return (memory("MemAvailable") or 8 << 30) * 3 // 4


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _kill_marked(marker: str) -> None:
    """Kill what has left the child's process group: its environment still carries the run's
    marker."""
    needle = f"{launch.RUN_MARKER}={marker}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue
