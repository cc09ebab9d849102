"""The two output streams, made safe for any text in a message and for readers that leave early."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def prepare_streams() -> None:
    """Let standard output and error show any text: what their encoding lacks is escaped, and a
    closed stream drops it."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open for as long as the process is
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line to `stream` (standard output by default); a reader that has left is not an
    error."""
    stream = stream or sys.stdout
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        _let_go(stream)


def console(*, stderr: bool, width: int | None = None) -> Console:
    """A rich console without markup or highlighting that survives the loss of its reader; as wide
    as its terminal, or `width`."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            # The exit status belongs to the verdict, so a reader that has left must not change it.
            self.quiet = True
            _let_go(sys.stderr if stderr else sys.stdout)

    return Terminal(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def _let_go(stream: TextIO) -> None:
    """Drop what is still to be written: the interpreter flushes at exit, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
