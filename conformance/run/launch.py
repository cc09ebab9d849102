"""What all our child processes share: how they start, their environment, and that none outlives
us."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from conformance.places import HOME, is_installed

if TYPE_CHECKING:
    from conformance.hub import HubView

RUN_MARKER = "CONFORMANCE_RUN"
"""Every process that a run starts carries this variable, whatever group or session it moves to."""
_LAST_LINES = 12


class Process(Protocol):
    """A child process, as `subprocess.Popen` describes it."""

    pid: int
    returncode: Any
    """An integer once it has ended, negative for a signal."""

    def poll(self) -> int | None: ...

    def wait(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


def start(
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    pipes: Sequence[int],
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Run `main()` of `module` in a new session; its output goes to `log`, and it inherits
    `pipes`."""
    # Without the working directory on the path: a user's own `backbones` or `conformance` folder
    # must not stand in for ours.
    launch = (
        f"import sys; sys.path[:] = [place for place in sys.path if place]; from {module} "
        f"import main; main()"
    )
    with open(log, "wb") as written:
        return subprocess.Popen(
            [sys.executable, "-c", launch, *arguments],
            env=environment,
            stdin=stdin,
            stdout=written,
            stderr=written,
            pass_fds=pipes,
            start_new_session=True,
        )


def lines(stream: IO[bytes] | None) -> Iterator[str]:
    """What a process says into a pipe, a line as it comes; bytes that are no UTF-8 are replaced."""
    assert stream is not None, "the process has no pipe there"
    for data in stream:
        yield data.decode("utf-8", "replace").rstrip()


def end(process: Process) -> None:
    """End a child and whatever runs in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def manner_of_death(returncode: int) -> str:
    """How a process ended: `exited with status 3`, `was killed by SIGSEGV`."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (out of memory, most likely)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def last_lines(log: Path) -> list[str]:
    """The end of what a child wrote to its standard output and error."""
    return (
        log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        if log.exists()
        else []
    )


def end_with_parent() -> None:
    """Called in a child: it dies when its parent does. Forks of it must call it again."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def environment_of_child(view: HubView, marker: str) -> dict[str, str]:
    """The environment in which a child finds this checkout and its own hub, and uses no network."""
    environment = dict(os.environ)
    for name, value in view.environment().items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    if not is_installed():
        # A checkout that is on the path without being installed must be found by the child too.
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(HOME), *filter(None, [environment.get("PYTHONPATH")])]
        )
    environment[RUN_MARKER] = marker
    # A verdict must not depend on the order of sets; CON-18 has a second process order them anew.
    environment.setdefault("PYTHONHASHSEED", "0")
    # Probe models are too small to benefit from threads, and one thread gives the same bits on
    # every machine.
    environment.setdefault("OMP_NUM_THREADS", "1")
    # At the published size threads do help, and on a busy machine those that spin while waiting
    # double the time.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _keeps_large_tensors():
        # Logits over a large vocabulary are 100 MB, which glibc would take from the kernel and give
        # back at every call: half of the time over 150,000 rows.
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**27))
        environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
    # Hypothesis would otherwise leave a .hypothesis folder wherever it is run.
    environment.setdefault(
        "HYPOTHESIS_STORAGE_DIRECTORY",
        str(Path(tempfile.gettempdir()) / f"conformance-hypothesis-{os.getuid()}"),
    )
    return environment


def _keeps_large_tensors() -> bool:
    """Whether the C library takes a threshold of more than 32 MiB: glibc from 2.35 on."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, OSError, ValueError):  # another C library
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
