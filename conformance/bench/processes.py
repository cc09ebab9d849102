"""The parent's side of a benchmark run: fresh processes, or forks of a warmed one, and worktrees of other commits."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.bench.request import HOME, BenchRequest
from conformance.errors import CannotAssess
from conformance.hub import HubView
from conformance.run import launch

#: Of the time that a process has: what it waits for one turn. Who takes longer over a turn hangs; who is merely slow does not.
_PATIENCE = 0.5
#: Seconds that a process has to say what ended it, once the one that took turns with it has missed it.
_LAST_WORDS = 10.0


class RunFailed(Exception):
    """A process that was to measure did not: it crashed, hung or raised. ``worker`` is the one that failed, with whose last
    words the message ends; None where it is not known which of two did."""

    def __init__(self, message: str, worker: Worker | None) -> None:
        super().__init__(message + (worker.last_words() if worker else ""))
        self.worker = worker


@dataclass(frozen=True)
class Code:
    """Where a version of the code lies: ``directory``, where targets are named from, within the checkout ``root``, which was
    made of ``repository``."""

    directory: Path
    root: Path
    repository: Path

    @property
    def places(self) -> list[str]:
        """What goes to the front of the path, the working directory first."""
        return list(dict.fromkeys(map(str, (self.directory, self.root, self.root / "src"))))


class Worker:
    """A process that measures requests for one version of the code, each in a fork of its own or, once, in itself.

    ``turns`` are the ends of two pipes that carry the turn from and to the process that it takes turns with.
    """

    def __init__(
        self, home: Path, code: Code | None, timeout: float, turns: tuple[int, int] | None = None
    ) -> None:
        home.mkdir(parents=True)
        self._log = home / "log"
        self.timeout = timeout
        self.answers, writing_end = os.pipe()
        pipes = [writing_end, *(turns or (-1, -1))]
        arguments = [*map(str, pipes), *(code.places if code else [])]
        self._closed = False
        self._process = launch.start(
            "conformance.bench.child",
            arguments,
            log=self._log,
            environment=_environment(home),
            pipes=[pipe for pipe in pipes if pipe >= 0],
            stdin=subprocess.PIPE,
        )
        os.close(writing_end)

    def ask(self, request: BenchRequest, out: Path, *, fork: bool) -> None:
        """Let it begin to measure; :func:`answers` waits for the end.

        Raises:
            RunFailed: if the process is gone.
        """
        patience = _PATIENCE * self.timeout
        asked = {"request": request.as_json(), "out": str(out), "fork": fork, "patience": patience}
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(asked).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise RunFailed("the process ended before it was asked", self) from None

    def close(self) -> None:
        """End the process and whatever it started; once."""
        if self._closed:
            return
        self._closed = True
        launch.end(self._process)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        with suppress(OSError):
            os.close(self.answers)

    def last_words(self) -> str:
        """The end of what it wrote to its standard output and error."""
        return "".join(f"\n    {line}" for line in launch.last_lines(self._log))


def _environment(home: Path) -> dict[str, str]:
    environment = launch.environment_of_child(HubView(home / "hf"), home.name)
    # What a user, or a pytest around us, tells pytest would drop or disable benchmarks without a word.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    # Otherwise asking whether there is a device is enough to make forks unable to use it.
    return {
        **environment,
        HOME: str(home),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def answers(asked: Sequence[Worker]) -> list[dict[str, Any]]:
    """What each of the workers measured, once all of them have; the first that fails ends the waiting, and the last to have
    failed of two that took turns: what the other says is only that it was left alone.

    Raises:
        CannotAssess: if a request cannot be met.
        RunFailed: if a process crashed, hung or raised.
    """
    said = {worker.answers: b"" for worker in asked}
    by_pipe = {worker.answers: worker for worker in asked}
    deadline = time.monotonic() + max(worker.timeout for worker in asked)
    missed: Worker | None = None
    with selectors.DefaultSelector() as selector:
        for pipe in said:
            selector.register(pipe, selectors.EVENT_READ)
        while waiting := selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if missed and not ready:
                raise RunFailed("the process did not pass the turn: it hangs, or was killed", missed)
            if not ready:
                slow = [by_pipe[key.fd] for key in waiting.values()]
                raise RunFailed(
                    f"nothing was measured within {slow[0].timeout:g} s (raise --timeout)",
                    slow[0] if len(slow) == 1 else None,
                )
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    raise RunFailed("the process that was to measure ended", by_pipe[key.fd])
                said[key.fd] += data
                if said[key.fd].endswith(b"\n"):
                    selector.unregister(key.fd)
                    answer, worker = json.loads(said[key.fd]), by_pipe[key.fd]
                    if "partner" in answer:
                        missed = missed or next(other for other in asked if other is not worker)
                        deadline = min(deadline, time.monotonic() + _LAST_WORDS)
                    else:
                        _check(answer, worker)
        if missed:
            raise RunFailed("the process measured, and did not pass the turn", missed)
    places = [Path(json.loads(said[worker.answers])["out"]) for worker in asked]
    return [json.loads(place.read_text(encoding="utf-8")) for place in places]


def _check(answer: dict[str, Any], worker: Worker) -> None:
    if "refused" in answer:
        raise CannotAssess(answer["refused"])
    if "error" in answer:
        raise RunFailed(answer["error"], worker)


class Workers:
    """Starts workers; all of them are gone when the ``with`` block ends, however it ends."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> Workers:
        scratch = tempfile.TemporaryDirectory(prefix="conformance-bench-", ignore_cleanup_errors=True)
        self._scratch = Path(self._stack.enter_context(scratch))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def one(self, code: Code | None, timeout: float) -> Worker:
        """A worker that measures alone."""
        return self._start(code, timeout, None)

    def pair(self, first: Code | None, second: Code | None, timeout: float) -> tuple[Worker, Worker]:
        """Two workers that take turns, for two versions of the code."""
        (from_first, to_second), (from_second, to_first) = os.pipe(), os.pipe()
        try:
            return (
                self._start(first, timeout, (from_second, to_second)),
                self._start(second, timeout, (from_first, to_first)),
            )
        finally:
            for pipe in (from_first, to_second, from_second, to_first):
                os.close(pipe)

    def _start(self, code: Code | None, timeout: float, turns: tuple[int, int] | None) -> Worker:
        self._count += 1
        worker = Worker(self._scratch / str(self._count), code, timeout, turns)
        self._stack.callback(worker.close)
        return worker


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
        place = Path(folder).resolve() / "code"
        try:
            told = subprocess.run(
                ["git", "-C", str(repository), "worktree", "add", "--detach", str(place), commit],
                capture_output=True,
                text=True,
            )
            if told.returncode:
                raise CannotAssess(f"git made no worktree of {ref}: {told.stderr.strip()}")
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
