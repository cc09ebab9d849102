"""What `certify --watch` shows: what the last edit mended, and what is left. A view that stays in
its place on a terminal, lines elsewhere."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from conformance.report import narrative
from conformance.verdict.outcomes import UNMET, ClauseOutcome, Outcome

CAUSES = (Outcome.FAILED, Outcome.ERROR, Outcome.NOT_RUN)
"""Outcomes to mend; what they block is counted alone."""
_STYLES = {"mended": "green", "left": "bold red", "judging": "dim"}
_LABEL = 9


class Watched:
    """What is known of each clause as the files are edited.

    `clauses` are all that are asked for, in the order of the catalogue.
    """

    def __init__(self, title: str, clauses: Sequence[str]) -> None:
        self.title = title
        self._clauses = tuple(clauses)
        self._found: dict[str, ClauseOutcome] = {}
        self._before: Mapping[str, ClauseOutcome] = {}
        self._stale = set(clauses)
        self.last_saved: str | None = None
        self._began = time.monotonic()
        self._seconds = 0.0
        self.step = "loading the libraries"
        self.refusal: str | None = None

    def saved(self, names: Sequence[str]) -> None:
        """Files were saved: nothing that was found holds for certain."""
        self.last_saved = f"{time.strftime('%H:%M:%S')}, {', '.join(names)}"
        self._before = dict(self._found)
        self._stale = set(self._clauses)
        self._began = time.monotonic()
        self.refusal = None

    def judged(self, outcome: ClauseOutcome) -> None:
        self._found[outcome.id] = outcome
        self._stale.discard(outcome.id)
        self._seconds = time.monotonic() - self._began

    def unmet(self) -> tuple[str, ...]:
        """The clauses that were not met when they were last judged, and are to be judged again."""
        return tuple(
            one for one in self.stale() if one in self._found and self._found[one].outcome in UNMET
        )

    def stale(self) -> tuple[str, ...]:
        """The clauses to be judged."""
        return tuple(one for one in self._clauses if one in self._stale)

    def mended(self) -> list[ClauseOutcome]:
        """What the last edit mended."""
        return [
            outcome
            for one, outcome in self._found.items()
            if one not in self._stale
            and outcome.outcome not in UNMET
            and one in self._before
            and self._before[one].outcome in UNMET
        ]

    def left(self) -> list[ClauseOutcome]:
        """What is to be mended, as last judged: the causes alone."""
        return [
            self._found[one]
            for one in self._clauses
            if one in self._found and self._found[one].outcome in CAUSES
        ]

    def summary(self) -> str:
        """How far it is, in one line."""
        if self.refusal is not None:
            return f"cannot be judged: {self.refusal}"
        total, left = len(self._clauses), self.left()
        blocked = sum(found.outcome is Outcome.BLOCKED for found in self._found.values())
        waiting = len(self._stale)
        told = [f"{total - waiting} of {total} judged in {self._seconds:.1f} s"]
        told.append(f"{len(left)} to mend" if left else "all of them are met")
        if blocked:
            told.append(f"{blocked} blocked by these")
        return ", ".join(told)

    def lines(self, width: int) -> Iterator[Text]:
        """The view, fitted to so many columns."""
        yield Text(self.title, style="bold")
        if self.last_saved is not None:
            yield from _fact("saved", self.last_saved, width)
        for outcome in self.mended():
            yield from _fact("mended", f"{outcome.id} {narrative.title_of(outcome)}", width)
        for outcome in self.left():
            old = " (before the last edit)" if outcome.id in self._stale else ""
            yield from _fact("left", f"{outcome.id}{old} {narrative.headline(outcome)}", width)
            for label, told in narrative.evidence_of(outcome):
                if label in ("where", "should be", "to mend"):
                    yield from _fact("", f"{label}: {told}", width)
        yield from _fact("so far" if self._stale else "now", self.summary(), width)
        if self.step:
            yield from _fact("judging", self.step, width)


def _fact(label: str, told: str, width: int) -> Iterator[Text]:
    room = max(20, width - _LABEL - 1)
    for number, part in enumerate(
        textwrap.wrap(told, room, break_long_words=False, break_on_hyphens=False) or [""]
    ):
        shown = "" if number else label
        yield Text.assemble((f"{shown:<{_LABEL}}", _STYLES.get(label, "")), part)


class View:
    """Draws what is known, whenever `draw` is called."""

    def draw(self) -> None:
        """Show it as it is now."""

    def saved(self) -> None:
        """Files were saved."""
        self.draw()

    def judged(self, outcome: ClauseOutcome) -> None:
        """A clause was judged."""
        self.draw()

    def rested(self) -> None:
        """There is nothing to judge until a file is saved."""
        self.draw()


@contextmanager
def view(console: Console, watched: Watched) -> Iterator[View]:
    """A view of `watched` while the body runs."""
    if not console.is_terminal:
        yield _Lines(console, watched)
        return
    from rich.live import Live

    # Without a thread of its own: it would not survive the forks, and they might wait for it.
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        yield _Screen(live, console, watched)


class _Screen(View):
    def __init__(self, live: Any, console: Console, watched: Watched) -> None:
        self._live, self._console, self._watched = live, console, watched

    def draw(self) -> None:
        lines = list(self._watched.lines(self._console.width - 1))
        self._live.update(Text("\n").join(lines), refresh=True)


class _Lines(View):
    def __init__(self, console: Console, watched: Watched) -> None:
        self._console, self._watched = console, watched

    def saved(self) -> None:
        self._console.print(Text(f"saved {self._watched.last_saved}"), soft_wrap=True)

    def judged(self, outcome: ClauseOutcome) -> None:
        if outcome.outcome in CAUSES:
            told = f"{outcome.id} {outcome.outcome}: {narrative.headline(outcome)}"
            self._console.print(Text(told), soft_wrap=True)
        elif outcome in self._watched.mended():
            self._console.print(Text(f"{outcome.id} mended"), soft_wrap=True)

    def rested(self) -> None:
        self._console.print(Text(self._watched.summary()), soft_wrap=True)
