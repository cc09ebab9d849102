"""What reports say about a verdict, in whatever medium.

A report leads with root causes and sums up under each what it blocked; SHOULDs come after MUSTs,
and counts come last.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from conformance.catalogue import catalogue
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from conformance.verdict.verdict import RootCause, Verdict

_LEADING_EVIDENCE = {"where": "where", "expected": "should be", "mend": "to mend"}
"""Evidence that comes right behind what was observed, in the order shown, with its label."""

_DEEP_EVIDENCE = ("traceback", "log", "measured")
"""Evidence that is long and useful only for debugging: shown on request."""
_IN_HEADLINE = ("exception", "where")
"""Evidence that is left out where the headline holds it."""
_DRAWN_EVIDENCE = ("error growth", "wrap units", "receptive field", "states", "tokens", "code")
"""Evidence that the page draws, or shows beside what it belongs to."""

_BLOCKED_NAMED = 12
"""Of more clauses than these, blocked by one cause, their number says enough."""
_EXCERPT_CHARACTERS = 600
"""Beyond this many characters a piece of evidence is cut off, unless all of it was requested."""


def headline(outcome: ClauseOutcome) -> str:
    """What was observed of a clause, in one line."""
    told = as_text(outcome.evidence.get("observed") or outcome.summary or outcome.outcome.value)
    return excerpt(one_line(told), whole=False)


def statement_of(outcome: ClauseOutcome) -> str:
    """The clause's statement; empty for a clause that this version does not know."""
    known = catalogue().get(outcome.id)
    return known.statement if known else ""


def title_of(outcome: ClauseOutcome) -> str:
    """The clause in a few words, those that name its test: they stay when its statement is worded
    anew, so that tools which know a test by its name know it still."""
    known = catalogue().get(outcome.id)
    name = known.test.rpartition(":")[2] if known else ""
    return name.removeprefix("test_").replace("_", " ")


def evidence_of(outcome: ClauseOutcome, *, deep: bool = False) -> Iterator[tuple[str, str]]:
    """Label and text of each piece of evidence besides the `headline`, what to do about it first.

    `deep` includes tracebacks and logs, and cuts nothing off.
    """
    told_elsewhere = ["observed", *_DRAWN_EVIDENCE]
    # Of an exception, the headline says most.
    told_elsewhere += [
        name for name in _IN_HEADLINE if str(outcome.evidence.get(name)) in headline(outcome)
    ]
    evidence = {
        name: value for name, value in outcome.evidence.items() if name not in told_elsewhere
    }
    for name, label in _LEADING_EVIDENCE.items():
        if name in evidence:
            yield label, excerpt(as_text(evidence.pop(name)), whole=deep)
    for name, value in evidence.items():
        if deep or name not in _DEEP_EVIDENCE:
            yield one_line(name), excerpt(as_text(value), whole=deep)


def measurements(verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    """Clause, quantity, and the worst value with its bound, for everything measured against a
    bound."""
    for outcome in verdict.asked:
        measured = outcome.evidence.get("measured")
        for quantity, found in measured.items() if isinstance(measured, Mapping) else ():
            if isinstance(found, Mapping):
                worst, bound, number = (
                    as_text(found.get(key)) for key in ("worst", "bound", "measured")
                )
                where = (
                    f", in {found['dtype']} on {found.get('device')}" if "dtype" in found else ""
                )
                yield (
                    outcome.id,
                    str(quantity),
                    f"{_short(worst)} of {_short(bound)} allowed, the worst of {number}{where}",
                )


def counterexample_of(outcome: ClauseOutcome, *, deep: bool = False) -> str:
    """The smallest inputs that show a failure, as Python literals: `text = 'a\\u200b', times =
    2`."""
    draws = outcome.counterexample or {}
    return excerpt(", ".join(f"{name} = {value!r}" for name, value in draws.items()), whole=deep)


def blocked_summary(cause: RootCause, *, whole: bool = True) -> str:
    """`blocks 3 clauses: PAD-01, PAD-02, EMB-01`; unless `whole`, many are counted alone."""
    number = len(cause.blocked)
    told = f"blocks {number} clause{'' if number == 1 else 's'}"
    if number > _BLOCKED_NAMED and not whole:
        return f"{told}; --verbose names them"
    return f"{told}: {listed(cause.blocked)}"


def listed(outcomes: Iterable[ClauseOutcome]) -> str:
    """The clauses' IDs, consecutive ones joined: `CON-02, PAD-01..05, TOK-08`."""
    runs: list[list[str]] = []
    for outcome in outcomes:
        if runs and _follows(outcome.id, runs[-1][-1]):
            runs[-1].append(outcome.id)
        else:
            runs.append([outcome.id])
    return ", ".join(_span(run) for run in runs)


def kind_of(outcome: ClauseOutcome) -> str:
    """`MUST of core`, with a note if the clause does not deny a certificate."""
    kind = f"{outcome.level} of {outcome.profile}" if outcome.profile else outcome.level
    return f"{kind}, does not deny a certificate" if outcome.level != "MUST" else kind


def excused(verdict: Verdict) -> tuple[ClauseOutcome, ...]:
    """Waived clauses and known library defects."""
    return tuple(o for o in verdict.outcomes if o.outcome in (Outcome.WAIVED, Outcome.UPSTREAM))


def excuse_of(outcome: ClauseOutcome) -> str:
    """Why an unmet clause is excused."""
    if outcome.outcome is Outcome.UPSTREAM:
        defect = outcome.evidence.get("known defect")
        if defect is None:
            control = outcome.evidence.get("control", {})
            return one_line(
                f"the library's own model shows the same by the same inputs: "
                f"{control.get('observed')}"
            )
        return one_line(
            f"transformers {defect.get('transformers')}: {defect.get('measured')}, "
            f"{defect.get('issue')}"
        )
    waiver = outcome.evidence.get("waiver", {})
    return one_line(
        f"{waiver.get('reason')} (by {waiver.get('by')}, until {waiver.get('expires')})"
    )


def last_words(verdict: Verdict) -> str:
    """What the backbone's process wrote last before the run was cut short; empty if it wrote
    nothing."""
    return next(
        (
            as_text(outcome.evidence["log"])
            for outcome in verdict.not_run
            if outcome.evidence.get("log")
        ),
        "",
    )


def unrun_reasons(verdict: Verdict) -> dict[str, list[ClauseOutcome]]:
    """The clauses that did not run, by the reason given."""
    reasons: dict[str, list[ClauseOutcome]] = {}
    for outcome in verdict.not_run:
        reasons.setdefault(one_line(outcome.summary), []).append(outcome)
    return reasons


def conditions(verdict: Verdict) -> dict[str, str]:
    """The conditions of the run."""
    assessment = verdict.assessment
    facts: dict[str, Any] = {
        "target": assessment.target,
        "backbone": assessment.backbone_id,
        "profiles": ", ".join(assessment.profiles),
        "weights": assessment.weights,
        "device": assessment.device,
        "seed": assessment.seed,
        "budget": assessment.budget,
        "duration": f"{assessment.seconds:.1f} s",
        "issued": verdict.issued_at,
        "conformance": verdict.tool_version,
    }
    return {name: as_text(value) for name, value in facts.items()}


def checkpoints(verdict: Verdict) -> dict[str, str]:
    """The checkpoint that stood in for each hub id."""
    return {
        visible(hub_id): ", ".join(
            f"{name} {excerpt(as_text(value), whole=False)}" for name, value in stand_in.items()
        )
        for hub_id, stand_in in verdict.assessment.hub.items()
    }


def rerun_command(verdict: Verdict, clauses: Sequence[str], options: Sequence[str] = ()) -> str:
    """The command that judges `clauses` again under the same conditions; `options` are those that a
    verdict does not record (hub, recipes, configuration)."""
    assessment = verdict.assessment
    words = ["conformance", "certify", assessment.target]
    if assessment.backbone_id != assessment.target:
        words += ["--id", assessment.backbone_id]
    if assessment.profiles != ("default",):
        words += ["--profile", ",".join(assessment.profiles)]
    if assessment.budget != "standard":
        words += ["--budget", assessment.budget]
    if assessment.seed:
        words += ["--seed", str(assessment.seed)]
    words += [*options, "--only", ",".join(clauses)]
    return visible(shlex.join(words))


def as_text(value: Any) -> str:
    """A piece of evidence as text: strings as they are, numbers to four digits, everything else as
    JSON."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(str(key))}: {as_text(item)}" for key, item in value.items())
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)) and any(isinstance(item, float) for item in value):
        return f"[{', '.join(map(as_text, value))}]"
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def number(value: float) -> str:
    """A measured number to four digits; the certificate holds all of them."""
    # Without an exponent where there are no more digits than a person reads at a glance.
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


def visible(text: str) -> str:
    """`text` without anything that a terminal would obey or XML forbid: such characters become
    escapes.

    Newlines and tabs stay. Controls, formats (which can reverse the direction of writing),
    surrogates, private and unassigned characters are escaped.
    """
    return "".join(
        character
        if character in "\n\t" or not unicodedata.category(character).startswith("C")
        else _escaped(character)
        for character in text
    )


def _short(text: str) -> str:
    try:
        return number(float(text))
    except ValueError:
        return text


def excerpt(text: str, *, whole: bool) -> str:
    if whole or len(text) <= _EXCERPT_CHARACTERS:
        return text
    return f"{text[:_EXCERPT_CHARACTERS]}… ({len(text) - _EXCERPT_CHARACTERS} characters more)"


def _follows(clause: str, before: str) -> bool:
    (area, _, number), (area_before, _, number_before) = (
        clause.rpartition("-"),
        before.rpartition("-"),
    )
    both_numbers = number.isdecimal() and number_before.isdecimal()
    return area == area_before and both_numbers and int(number) == int(number_before) + 1


def _span(run: Sequence[str]) -> str:
    return ", ".join(run) if len(run) < 3 else f"{run[0]}..{run[-1].rpartition('-')[2]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
