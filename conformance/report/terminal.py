"""The two output streams, made safe for any text in a message and for readers that leave early."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_NARROWEST_COLUMNS = 20


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


def wrapped(text: str, stream: TextIO | None = None, *, indent: int = 0) -> str:
    """`text`, its lines broken between words where `stream` (standard output by default) is a
    terminal, and indented from the second on; a file or a program gets them as they are."""
    stream = stream or sys.stdout
    # One column is kept free: some terminals wrap a line that fills the last one.
    width = shutil.get_terminal_size().columns - 1
    if not stream.isatty() or width < _NARROWEST_COLUMNS:
        return text
    if width - indent < _NARROWEST_COLUMNS:
        indent = 2
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
            drop_whitespace=True,
        )
        for line in text.splitlines()
    )


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
