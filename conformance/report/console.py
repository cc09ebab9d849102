"""The report on the terminal. Its first line is the root cause, its last lines are the verdict and
what to run next."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from conformance.report import narrative
from conformance.verdict.outcomes import ClauseOutcome
from conformance.verdict.verdict import RootCause, Verdict

_STYLES = {
    "failed": "bold red",
    "error": "bold magenta",
    "not-run": "bold yellow",
    "blocked": "yellow",
}
_LABEL_COLUMNS = 11
_INDENT = "  "
_NARROWEST_COLUMNS = 40
_BEFORE_A_UNIT = re.compile(r"(?<=\d) (?=(?:s|ms|MB|GB|MiB|GiB|tokens?|rows?|MUSTs?|clauses?)\b)")
_KEPT = "\ue000"
"""Stands for a space at which no line ends: a character for private use, which no text has."""


def write_report(
    console: Console, verdict: Verdict, *, deep: bool = False, options: Sequence[str] = ()
) -> None:
    """Print what a person needs to mend the backbone.

    `deep` adds tracebacks and logs and cuts nothing off; `options` are added to the command
    suggested at the end.
    """
    page = _Page(console, deep)
    for part in (
        page.breakdown(verdict),
        *(page.cause(cause) for cause in verdict.root_causes),
        page.not_run(verdict),
        page.excused(verdict),
        page.notes(verdict),
    ):
        lines = list(part)
        if lines:
            page.write([*lines, Text()])
    page.write(page.verdict(verdict))
    # Not wrapped: a command has to survive being copied.
    for command in _next_commands(verdict, options):
        console.print(Text(f"{_INDENT}next: {command}"), soft_wrap=True)


class _Page:
    """Lines of text fitted to a console's width."""

    def __init__(self, console: Console, deep: bool) -> None:
        self._console = console
        self._deep = deep

    def write(self, lines: Sequence[Text] | Iterator[Text]) -> None:
        for line in lines:
            self._console.print(line, soft_wrap=True)

    def breakdown(self, verdict: Verdict) -> Iterator[Text]:
        if verdict.assessment.breakdown is None:
            return
        yield from self._headed(
            "run cut short", "bold red", narrative.one_line(verdict.assessment.breakdown)
        )
        last_words = narrative.last_words(verdict)
        if last_words and self._deep:
            yield from self._fact("it wrote", last_words)
        elif last_words:
            yield from self._fact(
                "it wrote", f"{len(last_words.splitlines())} last lines, shown with --verbose"
            )

    def cause(self, cause: RootCause) -> Iterator[Text]:
        outcome = cause.outcome
        style = _STYLES.get(outcome.outcome.value, "bold") if cause.denies else "bold yellow"
        yield from self._headed(
            f"{outcome.id} {outcome.outcome}", style, narrative.headline(outcome)
        )
        yield from self._fact(outcome.level, self._clause(cause))
        for label, text in narrative.evidence_of(outcome, deep=self._deep):
            yield from self._fact(label, text)
        if outcome.counterexample:
            yield from self._fact("shown by", narrative.counterexample_of(outcome, deep=self._deep))
        if cause.blocked:
            yield from self._fact("so", narrative.blocked_summary(cause, whole=self._deep))

    def not_run(self, verdict: Verdict) -> Iterator[Text]:
        for reason, outcomes in narrative.unrun_reasons(verdict).items():
            same = reason == narrative.one_line(verdict.assessment.breakdown or "")
            title = f"{len(outcomes)} not run"
            yield from self._headed(
                title, _STYLES["not-run"], narrative.listed(outcomes) if same else reason
            )
            if not same:
                yield from self._fact("clauses", narrative.listed(outcomes))

    def excused(self, verdict: Verdict) -> Iterator[Text]:
        for outcome in narrative.excused(verdict):
            yield from self._headed(
                f"{outcome.id} {outcome.outcome}", "yellow", narrative.headline(outcome)
            )
            yield from self._fact("because", narrative.excuse_of(outcome))

    def notes(self, verdict: Verdict) -> Iterator[Text]:
        for note in verdict.notes:
            yield from self._headed("note", "yellow", narrative.one_line(note))

    def verdict(self, verdict: Verdict) -> Iterator[Text]:
        style = (
            "bold green"
            if verdict.result == "PASSED"
            else "bold red"
            if verdict.result == "FAILED"
            else "bold yellow"
        )
        warned = " (with warnings)" if verdict.certified and verdict.result == "WARNED" else ""
        title = f"{narrative.one_line(verdict.title)}{warned}"
        yield from self._headed(
            title, style, "; ".join(map(narrative.one_line, verdict.reasons_for_denial))
        )
        yield from self._wrapped(
            f"{verdict.tally}; seed {verdict.assessment.seed}, {verdict.assessment.seconds:.1f} s"
        )

    def _clause(self, cause: RootCause) -> str:
        kind = "" if cause.outcome.level == "MUST" else " [does not deny a certificate]"
        return f"{narrative.statement_of(cause.outcome)}{kind}".strip()

    def _headed(self, head: str, style: str, text: str) -> Iterator[Text]:
        """`head: text`, the head in colour, further lines indented."""
        full = f"{head}: {text}" if text else head
        for number, line in enumerate(self._wrap(full, "", _INDENT * 2)):
            fitted = Text(line)
            if number == 0:
                fitted.stylize(style, 0, len(head))
            yield fitted

    def _fact(self, label: str, text: str) -> Iterator[Text]:
        """A label in its own column, and the text beside it; the text's own line breaks stay."""
        first = f"{_INDENT}{label:<{_LABEL_COLUMNS}}"
        if len(label) >= _LABEL_COLUMNS:
            first = f"{_INDENT}{label} "
        rest = " " * (len(_INDENT) + _LABEL_COLUMNS)
        for number, paragraph in enumerate(text.splitlines() or [""]):
            indent = first if number == 0 else rest
            for line in self._wrap(paragraph, indent, rest):
                fitted = Text(line)
                if line.startswith(first):
                    fitted.stylize("dim", 0, len(first))
                yield fitted

    def _wrapped(self, text: str) -> Iterator[Text]:
        return (Text(line) for line in self._wrap(text, _INDENT, _INDENT))

    def _wrap(self, text: str, first_indent: str, further_indent: str) -> list[str]:
        # One column is kept free: some terminals wrap a line that fills the last one.
        lines = textwrap.wrap(
            _BEFORE_A_UNIT.sub(_KEPT, text),
            max(self._console.width - 1, _NARROWEST_COLUMNS),
            initial_indent=first_indent,
            subsequent_indent=further_indent,
            break_on_hyphens=False,
            # A path or a command has to survive being copied: the terminal wraps it.
            break_long_words=False,
        )
        return [line.replace(_KEPT, " ") for line in lines]


def _next_commands(verdict: Verdict, options: Sequence[str]) -> Iterator[str]:
    failing: list[ClauseOutcome] = [cause.outcome for cause in verdict.root_causes if cause.denies]
    if failing:
        yield narrative.rerun_command(verdict, [failing[0].id], options)
    elif verdict.not_run and verdict.assessment.breakdown:
        yield narrative.rerun_command(verdict, [verdict.not_run[0].id], [*options, "--verbose"])
