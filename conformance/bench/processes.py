"""The parent's side of a benchmark run: fresh processes, or forks of a warmed one, and worktrees of other commits."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from conformance.bench.request import BenchRequest
from conformance.hub import HubView
from conformance.run_request import CannotAssess
from conformance.runner import environment_of_child

_LAUNCH = "import sys; sys.path[:] = [place for place in sys.path if place]; from conformance.bench.child import main; main()"
_LOG_TAIL_LINES = 12
DEFAULT_TIMEOUT_SECONDS = 1800.0


class RunFailed(Exception):
    """A process that was to measure did not: it crashed, hung or raised. The message ends with its last words."""


class Worker:
    """A process that measures requests for one version of the code, each in a fork of its own or, once, in itself."""

    def __init__(
        self, home: Path, code: Path | None = None, timeout: float = DEFAULT_TIMEOUT_SECONDS
    ) -> None:
        home.mkdir(parents=True)
        self._log = home / "log"
        self._timeout = timeout
        self._answers, writing_end = os.pipe()
        arguments = [sys.executable, "-c", _LAUNCH, str(writing_end), *([str(code)] if code else [])]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                arguments,
                env=environment_of_child(HubView(home / "hf"), home.name),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing_end,),
                start_new_session=True,
            )
        os.close(writing_end)

    def measure(self, request: BenchRequest, out: Path, *, fork: bool = False) -> dict[str, Any]:
        """The results of one process, as they were written to ``out``.

        Raises:
            CannotAssess: if the request cannot be met.
            RunFailed: if the process crashed, hung or raised.
        """
        asked = json.dumps({"request": request.as_json(), "out": str(out), "fork": fork})
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(asked.encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise RunFailed(f"the process ended before it was asked{self._last_words()}") from None
        answer = self._answer()
        if "refused" in answer:
            raise CannotAssess(answer["refused"])
        if "error" in answer:
            raise RunFailed(f"{answer['error']}{self._last_words()}")
        return json.loads(out.read_text(encoding="utf-8"))

    def close(self) -> None:
        """End the process and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        with suppress(OSError):
            os.close(self._answers)

    def _answer(self) -> dict[str, Any]:
        deadline, said = time.monotonic() + self._timeout, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RunFailed(
                        f"nothing was measured within {self._timeout:g} s (raise --timeout){self._last_words()}"
                    )
                if selector.select(left):
                    data = os.read(self._answers, 1 << 16)
                    if not data:
                        raise RunFailed(f"the process that was to measure ended{self._last_words()}")
                    said += data
        return json.loads(said)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "".join(f"\n    {line}" for line in lines)


class Start(Protocol):
    """Starts a worker for the code in a directory (None: what is installed)."""

    def __call__(self, code: Path | None = None, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> Worker: ...


@contextmanager
def workers(folder: Path | None = None) -> Iterator[Start]:
    """A function that starts a :class:`Worker`; all of them are gone when the body ends, however it ends."""
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-bench-", dir=folder))
        )
        count = 0

        def start(code: Path | None = None, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> Worker:
            nonlocal count
            count += 1
            worker = Worker(scratch / str(count), code, timeout)
            stack.callback(worker.close)
            return worker

        yield start


@contextmanager
def checkout(ref: str, repository: Path) -> Iterator[tuple[Path, str]]:
    """A worktree of ``ref`` for as long as the body runs, and the commit that it stands for.

    Raises:
        CannotAssess: where there is no repository, or it has no such commit.
    """
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if not commit:
        if not _git(repository, "rev-parse", "--git-dir"):
            raise CannotAssess(f"{repository} is no git repository, and there is no file {ref}")
        raise CannotAssess(
            f"{ref} is neither a stored result nor a commit of {repository}: name a branch, a tag, a commit (fetched, in CI: "
            "`git fetch --depth 1 origin REF`), a file or a folder of results"
        )
    with tempfile.TemporaryDirectory(prefix="conformance-worktree-") as folder:
        place = Path(folder) / "code"
        told = subprocess.run(
            ["git", "-C", str(repository), "worktree", "add", "--detach", str(place), commit],
            capture_output=True,
            text=True,
        )
        if told.returncode:
            raise CannotAssess(f"git made no worktree of {ref}: {told.stderr.strip()}")
        try:
            yield place, commit
        finally:
            subprocess.run(
                ["git", "-C", str(repository), "worktree", "remove", "--force", str(place)],
                capture_output=True,
            )


def repository_of(place: Path) -> Path | None:
    """The root of the git repository that ``place`` is in."""
    root = _git(place, "rev-parse", "--show-toplevel")
    return Path(root) if root else None


def _git(repository: Path, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
