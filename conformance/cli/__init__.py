"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

from conformance.cli.options import option_of
from conformance.errors import CannotAssess
from conformance.report.terminal import prepare_streams, say, wrapped
from conformance.run.request import InvalidRequest

CANNOT_ASSESS = 2
INTERRUPTED = 130
_KEPT = {
    "bench": "results measured so far are in the --out folder",
    "calibrate": "what was measured is in the --out file",
    "doctor": "nothing was changed",
    "hub": "what was whole is kept, and nothing half-written",
    "scaffold": "no project was written",
    "drift": "nothing was compared, and environments that were made are kept",
}
"""What is left of a command that was interrupted."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 certified, 1 not certified, 2 not assessed, 130
    interrupted."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _ending_when_terminated():
            from conformance.cli.app import app

            status = app(given, prog_name="conformance", standalone_mode=False) or 0
    except InvalidRequest as refusal:
        status = _refuse(refusal.said(option_of), given)
    except CannotAssess as refusal:
        status = _refuse(str(refusal), given)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # Usage errors come from click or from typer's own copy of it, depending on typer's version.
        usage: Callable[[], str] | None = getattr(error, "format_message", None)
        told = f"{usage()} (see --help)" if usage else _internal_error(error)
        status = _refuse(told, given, traced=usage is None)
    if status == INTERRUPTED:
        kept = _KEPT.get(given[0] if given else "", "no certificate was written")
        say(f"interrupted; {kept}", sys.stderr)
    sys.exit(status)


@contextmanager
def _ending_when_terminated() -> Iterator[None]:
    """Let SIGTERM end us as an exception does, so that a cancelled CI job leaves no worktree and no
    child process behind."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread, which alone may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(message: str, arguments: Sequence[str], *, traced: bool = True) -> int:
    if traced and "--verbose" in arguments:
        traceback.print_exc()
    if "--json" in arguments:
        say(json.dumps({"error": message}, indent=2))
    say(wrapped(f"conformance: {message}", sys.stderr, indent=2), sys.stderr)
    from conformance.report.github import runs_here, tell_github_refusal

    if runs_here():
        tell_github_refusal(message)
    return CANNOT_ASSESS


def _internal_error(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"internal error, {told} ({place.filename}:{place.lineno}; this is a defect of conformance)"
    )
