"""Shows the progress of a run: a bar on a terminal, a line for each step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from conformance.report.narrative import one_line
from conformance.verdict.outcomes import ClauseOutcome, Outcome

_TOLD = (Outcome.FAILED, Outcome.ERROR, Outcome.NOT_RUN)
"""Outcomes that get a line as they come; what a failure blocks is reported at the end."""


class Progress(Protocol):
    """Shows how far a run is."""

    def step(self, text: str) -> None:
        """A step begins."""

    def begin(self, clause_id: str, total: int) -> None:
        """A clause is about to be judged, one of `total`."""

    def judged(self, outcome: ClauseOutcome) -> None:
        """A clause was judged."""


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Show the progress of a run on `console` while the body runs."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar)


class _Lines:
    """One line for each step, one for each clause that is not met."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, text: str) -> None:
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def begin(self, clause_id: str, total: int) -> None:
        pass

    def judged(self, outcome: ClauseOutcome) -> None:
        if outcome.outcome in _TOLD:
            self._console.print(Text(f"{outcome.id} {outcome.outcome}"), soft_wrap=True)


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)
        self._done = 0

    def step(self, text: str) -> None:
        self._bar.update(self._task, description=one_line(text))

    def begin(self, clause_id: str, total: int) -> None:
        self._bar.update(self._task, description=f"judging {clause_id}", total=total)

    def judged(self, outcome: ClauseOutcome) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        if outcome.outcome in _TOLD:
            self._bar.console.print(Text(f"{outcome.id} {outcome.outcome}"))
