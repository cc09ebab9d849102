"""`summary.md`: the verdict for a pull request or a job summary."""

from __future__ import annotations

import re
from collections.abc import Iterator

from conformance.report import narrative
from conformance.verdict.verdict import RootCause, Verdict

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!])")


def markdown(verdict: Verdict) -> str:
    """The summary as GitHub-flavoured Markdown."""
    return "\n".join(_lines(verdict)) + "\n"


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"# {_escaped(verdict.title)}"
    yield ""
    reasons = "; ".join(verdict.reasons_for_denial)
    yield (
        f"**{verdict.result}**{f' ({_escaped(reasons)})' if reasons else ''}. "
        f"{_escaped(verdict.tally)}."
    )
    yield ""
    if verdict.assessment.breakdown is not None:
        yield f"Run cut short: {_escaped(verdict.assessment.breakdown)}."
        yield ""
    for cause in verdict.root_causes:
        yield from _cause(cause)
    for reason, outcomes in narrative.unrun_reasons(verdict).items():
        yield f"- **{len(outcomes)} not run** ({narrative.listed(outcomes)}): {_escaped(reason)}"
    for outcome in narrative.excused(verdict):
        yield f"- **{outcome.id} {outcome.outcome}**: {_escaped(narrative.excuse_of(outcome))}"
    for note in verdict.notes:
        yield f"- note: {_escaped(note)}"
    yield ""
    yield from _table({"": "", **narrative.conditions(verdict), **narrative.checkpoints(verdict)})
    yield ""
    yield "| clause | level | outcome | statement |"
    yield "| --- | --- | --- | --- |"
    for outcome in verdict.asked:
        statement = _escaped(narrative.statement_of(outcome))
        yield (
            f"| {_escaped(outcome.id)} | {_escaped(outcome.level)} | {outcome.outcome} | "
            f"{statement} |"
        )


def _cause(cause: RootCause) -> Iterator[str]:
    outcome = cause.outcome
    kind = "" if cause.denies else " (does not deny a certificate)"
    yield f"## {outcome.id} {outcome.outcome}: {_escaped(narrative.headline(outcome))}{kind}"
    yield ""
    yield f"> {outcome.level}: {_escaped(narrative.statement_of(outcome))}"
    yield ""
    for label, text in narrative.evidence_of(outcome):
        yield f"- {label}: {_escaped(text)}"
    if outcome.counterexample:
        yield f"- shown by: {_code(narrative.counterexample_of(outcome))}"
    if cause.blocked:
        yield f"- {narrative.blocked_summary(cause)}"
    yield ""


def _table(rows: dict[str, str]) -> Iterator[str]:
    for number, (name, value) in enumerate(rows.items()):
        yield f"| {_escaped(name)} | {_escaped(value)} |"
        if number == 0:
            yield "| --- | --- |"


def _escaped(text: str) -> str:
    """`text` escaped for Markdown, on one line: it comes from the subject and may hold anything."""
    return _SPECIAL.sub(r"\\\1", narrative.one_line(text))


def _code(text: str) -> str:
    """`text` in a code span whose fence is longer than any run of backticks in it."""
    text = narrative.one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"
