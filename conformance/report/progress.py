"""What is happening while a run is under way: a bar on a terminal, a line for each step elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from conformance.report.narrative import one_line

OnEvent = Callable[[Mapping[str, Any]], None]


@contextmanager
def progress(console: Console) -> Iterator[OnEvent]:
    """A function that shows the runner's events on ``console`` for as long as the body runs."""
    if not console.is_terminal:
        yield _Lines(console).show
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar).show


class _Lines:
    """One line for each phase, one for each clause that is not met."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: Mapping[str, Any]) -> None:
        line = _line_for(event)
        if line:
            self._console.print(Text(line), soft_wrap=True)


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)
        self._done = 0

    def show(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "phase":
            self._bar.update(self._task, description=one_line(f"{event['phase']} {event['detail']}"))
        elif kind == "begin":
            self._bar.update(self._task, description=f"judging {event['id']}", total=event["total"])
        elif kind == "outcome":
            self._done += 1
            self._bar.update(self._task, completed=self._done)
            line = _line_for(event)
            if line:
                self._bar.console.print(Text(line))


def _line_for(event: Mapping[str, Any]) -> str:
    if event["event"] == "phase":
        return one_line(f"{event['phase']} {event['detail']}")
    if event["event"] == "outcome" and event["outcome"] in ("failed", "error", "not-run"):
        return f"{event['id']} {event['outcome']}"
    return ""
