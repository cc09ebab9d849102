"""The process in which the subject lives: resolves, constructs and judges it, and streams the
results.

One JSON object per line goes to the pipe whose number is the first argument, and an empty line as
a sign of life; the second is the request. Standard output and error belong to the subject.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import json
import os
import signal
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

from conformance.catalogue import Requirement
from conformance.errors import CannotAssess
from conformance.run import events
from conformance.run.elsewhere import OF_TWO_PROCESSES, Elsewhere
from conformance.run.launch import end_with_parent
from conformance.run.request import RunRequest
from conformance.subject.contract import CANARY_TOKEN
from conformance.subject.raised import files_loaded, libraries_loaded

_STREAM_FD_FLOOR = 200
"""Above the descriptors that careless code closes wholesale."""
_SIGN_SECONDS = 1.0
"""Signs of life are this far apart."""


class EventStream:
    """Writes events to the parent, one per line, unbuffered: what was sent survives a crash."""

    def __init__(self, fd: int) -> None:
        self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STREAM_FD_FLOOR)
        os.close(fd)
        self._outcomes = 0
        self._last_sign = 0.0

    def send(self, event: events.Event) -> None:
        self._outcomes += isinstance(event, events.Judged)
        # Whatever the subject does with the token, it must not reach a certificate through an error
        # message.
        data = (events.line(event).replace(CANARY_TOKEN, "<hf_token>") + "\n").encode("ascii")
        while data:
            data = data[os.write(self._fd, data) :]

    def phase(self, name: str, detail: str) -> None:
        self.send(events.Phase(name, detail))

    def alive(self) -> None:
        """Say that the clause being judged gets on: an empty line, once a second at most."""
        if time.monotonic() - self._last_sign > _SIGN_SECONDS:
            self._last_sign = time.monotonic()
            os.write(self._fd, b"\n")

    def footer(self) -> None:
        """The last line; a stream without it was cut short."""
        self.send(events.Footer(self._outcomes))


def main() -> None:
    fd, request_json, home = sys.argv[1:]
    _prepare()
    stream = EventStream(int(fd))
    request = RunRequest.from_json(json.loads(request_json))
    try:
        assess(request, Path(home), stream)
    except CannotAssess as refusal:
        stream.send(events.Refused(str(refusal), getattr(refusal, "hub_id", None)))
    stream.send(events.Loaded(files_loaded(), libraries_loaded()))
    stream.footer()
    sys.stdout.flush()
    # Threads and exit handlers of the subject must not turn a finished run into a crash or a hang.
    os._exit(0)


def assess(request: RunRequest, home: Path, stream: EventStream) -> None:
    """Resolve, construct, judge `request.only`; every step is announced before it is taken."""
    from conformance.subject.target import resolve

    stream.phase("resolving", request.target)
    resolved = resolve(request.target, request.backbone_id)
    stream.phase("loading", "torch and transformers")
    from conformance.run.judging import judge
    from conformance.run.session import open_session
    from conformance.suite.collection import clause_tests

    elsewhere = Elsewhere(request, home.parent / "elsewhere")
    if OF_TWO_PROCESSES in request.clauses:
        elsewhere.begin()
    clause_tests()
    # What the libraries made on import stays; transformers 4.40 has the garbage collector scan all
    # of it at every load, which took half a second each time.
    gc.freeze()

    with (
        closing(elsewhere),
        open_session(resolved, request, home, stream.phase, elsewhere=elsewhere) as session,
    ):
        clauses = request.clauses
        stream.phase("constructing", resolved.backbone_id)
        # Sent before as well as after: when a constructor never returns, the certificate still says
        # what it is about.
        stream.send(session.facts())
        session.construct()
        stream.send(session.facts())
        stream.phase("judging", resolved.backbone_id)
        for index, item in enumerate(judge(session.subject, clauses, stream.alive)):
            if isinstance(item, Requirement):
                stream.send(events.Begin(item.id, index // 2, len(clauses)))
            else:
                stream.send(events.Judged(item))


def _prepare() -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    end_with_parent()
    # If the machine runs out of memory, the subject is killed first, not its user's editor.
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
