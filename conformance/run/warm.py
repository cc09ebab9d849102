"""Runs that begin at once: forks of a process that has the libraries loaded.

`certify` starts a new interpreter for each run, which trusts nothing that was there before. Whoever
runs again and again (`--watch`) waits for the libraries once.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from conformance.hub import HubView
from conformance.run import child, launch

_BROKEN = 70
"""The exit status of a fork that never became a child (`EX_SOFTWARE` of sysexits.h)."""


def load() -> None:
    """Import torch, transformers and the suite into this process, as a child would: without the
    network, and with one thread. Threads do not survive a fork, so none may have started."""
    with TemporaryDirectory(prefix="conformance-") as scratch:
        environment = launch.environment_of_child(HubView(Path(scratch)), marker="")
        os.environ.clear()
        os.environ.update(environment)
        import torch

        from conformance.run import judging, session  # noqa: F401 - every run imports them
        from conformance.suite.collection import clause_tests

        torch.set_num_threads(1)
        clause_tests()
    # Forks share what nobody looks through.
    gc.freeze()


def load_too(modules: Iterable[str]) -> None:
    """Import more of the libraries: what a run told of (`events.Loaded`), so that the next need
    not."""
    for name in modules:
        if name not in sys.modules:
            # Whoever needs it will say what is wrong with it.
            with suppress(Exception):
                importlib.import_module(name)


class Fork:
    """A forked child; what is used here of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def start(
    arguments: Sequence[str], *, log: Path, environment: Mapping[str, str], pipes: Sequence[int]
) -> Fork:
    """Fork a child of `conformance.run.child` with these arguments, as `launch.start` does with a
    new interpreter. It keeps all open files; `pipes` are among them."""
    pid = os.fork()
    if not pid:
        _become_child(arguments, log, environment)
    # Here and there: whoever comes second must find a group of its own to end.
    with suppress(OSError):
        os.setpgid(pid, pid)
    return Fork(pid)


def _become_child(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> NoReturn:
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(os.devnull, "rb") as nothing, open(log, "wb") as written:
            os.dup2(nothing.fileno(), 0)
            os.dup2(written.fileno(), 1)
            os.dup2(written.fileno(), 2)
        # Ours may lead to a terminal that is being drawn on.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open for as long as the process is
        sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c", *arguments]
        sys.path[:] = [place for place in sys.path if place]
        # Compiled files are known by size and second: an edit within a second would not show.
        sys.dont_write_bytecode = True
        child.main()
    finally:
        os._exit(_BROKEN)
