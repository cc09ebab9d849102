"""Certifies the subject in another environment: a process of `conformance certify` there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from conformance.drift.environments import Announce
from conformance.errors import CannotAssess
from conformance.places import HOME, PACKAGE, is_installed
from conformance.run import launch
from conformance.verdict.load import CERTIFICATE, read_certificate
from conformance.verdict.verdict import Verdict

_PATIENCE_SECONDS = 10.0
"""For a run that is asked to end: it ends its own processes first."""
_STEP = re.compile(
    r"(resolving|loading|deriving recipe|building hub|constructing) "
    r"|[A-Z]+-\d+ (failed|error|not-)"
)
"""The lines of a run that say how far it is."""


@dataclass(frozen=True)
class Side:
    """One of the two: what a person calls it, and the interpreter of its environment."""

    label: str
    python: Path


class SideFailed(CannotAssess):
    """The subject could not be assessed in one of the two environments; the message names it."""


def certified(
    side: Side, target: str, options: Sequence[str], out: Path, announce: Announce
) -> Verdict:
    """The verdict on `target` in the side's environment; certificate and reports are in `out`.

    Args:
        options: further options of `conformance certify`.
        announce: called with a line for each step.

    Raises:
        SideFailed: if there is no certificate.
    """
    announce(f"{side.label}: certifying")
    command = [str(side.python), "-m", "conformance", "certify", target, *options]
    with _ours_alone() as home, tempfile.TemporaryFile() as answer:
        path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [*command, "--out", str(out), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"},
            start_new_session=True,
        )
        said: list[str] = []
        try:
            for line in launch.lines(process.stderr):
                said.append(line)
                if _STEP.match(line):
                    announce(f"{side.label}: {line}")
            status = process.wait()
        finally:
            _end(process)
        answer.seek(0)
        refusal = _refusal(answer.read())
    if status not in (0, 1) or refusal or not (out / CERTIFICATE).is_file():
        told = refusal or "\n    ".join(
            [
                f"`conformance certify` {launch.manner_of_death(status)}; `conformance doctor`, "
                f"run with {side.python}, says what may be missing there",
                *said[-3:],
            ]
        )
        raise SideFailed(f"{side.label}: {told}")
    return read_certificate(out / CERTIFICATE)


def _refusal(answer: bytes) -> str | None:
    """The message of a run that was refused."""
    try:
        found = json.loads(answer)
        return str(found["error"]) if "error" in found else None
    except (ValueError, TypeError):
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run and whatever it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SECONDS)
    launch.end(process)
    with suppress(OSError):
        process.stderr.close()  # type: ignore[union-attr]


@contextmanager
def _ours_alone() -> Iterator[Path]:
    """A folder that holds our packages and nothing else: what is installed beside them must not
    come before what the other environment has."""
    if not is_installed():
        yield HOME
        return
    with tempfile.TemporaryDirectory(prefix="conformance-path-") as scratch:
        for package in (PACKAGE, HOME / "backbones"):
            (Path(scratch) / package.name).symlink_to(package)
        yield Path(scratch)
