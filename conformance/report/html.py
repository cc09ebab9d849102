"""`report.html`: one file that refers to no other, so that it can be mailed and still be read.

The templates, the style and the script lie in `page/`. What comes from the subject is escaped, and
the policy in the page lets nothing run but the script that stands in it, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from conformance.catalogue import area_of, profiles
from conformance.places import DOCUMENTATION, PACKAGE
from conformance.report import narrative
from conformance.report.figures import Figures, Reading, figures_of, readings, states
from conformance.report.prose import Token, apart, prose, statement, tokens
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from conformance.verdict.resources import digest_of_sources
from conformance.verdict.verdict import RootCause, Verdict

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = PACKAGE / "report" / "page"
"""Templates, style and script of pages."""
_STANDINGS = (
    "failed",
    "error",
    "not-run",
    "blocked",
    "waived",
    "upstream",
    "passed",
    "not-applicable",
)
"""The outcomes of an area, those that want to be looked at first."""
_SHOWN_APART = ("should be", "to mend")
_LONG = ("traceback", "log")


def html(verdict: Verdict) -> str:
    """The report as an HTML document. Whatever comes from the subject is escaped."""
    environment = templates()
    environment.filters |= {
        "text": narrative.as_text, "prose": prose, "statement": statement,
    }  # fmt: skip
    style, script = styled("report.css"), part("report.js")
    return environment.get_template("report.html.jinja").render(
        verdict=verdict,
        assessment=verdict.assessment,
        narrative=narrative,
        causes=[Clause(cause.outcome, cause) for cause in verdict.root_causes],
        areas=areas_of(verdict),
        facts=facts(verdict),
        unasked=unasked(verdict),
        idle=[
            (outcome, found)
            for outcome in (Outcome.NOT_APPLICABLE, Outcome.NOT_RUN)
            if (found := [one for one in verdict.asked if one.outcome is outcome])
        ],
        measured=[reading for outcome in verdict.asked for reading in readings(outcome)],
        drawn=[shown for shown in map(Clause, verdict.asked) if shown.figures],
        states=states(verdict),
        rerun=[
            narrative.rerun_command(verdict, [cause.outcome.id])
            for cause in verdict.root_causes[:1]
            if cause.denies
        ],
        style=style,
        script=script,
        policy=policy(style, script),
    )


def templates() -> Environment:
    """The templates of pages. Whatever they show is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        # What a browser or an editor would obey, whoever wrote it, is shown as its escape.
        finalize=lambda value: (
            value
            if isinstance(value, Markup) or not isinstance(value, str)
            else narrative.visible(value)
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def styled(name: str) -> Markup:
    """The look that all pages share, and the style of one of them."""
    return Markup(part("look.css") + part(name))


@cache
def part(name: str) -> Markup:
    """A style or a script of ours, as it stands in a page."""
    return Markup((PAGE / name).read_text(encoding="utf-8"))


def policy(style: str, script: str = "") -> str:
    """The Content-Security-Policy of a page: its own style and script, nothing from elsewhere."""
    allowed = [
        f"{kind}-src '{_digest(text)}'"
        for kind, text in (("style", style), ("script", script))
        if text
    ]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


@dataclass(frozen=True)
class Clause:
    """One clause and what became of it, as the page shows it; `cause` if it is a root cause."""

    outcome: ClauseOutcome
    cause: RootCause | None = None

    @property
    def denies(self) -> bool:
        return self.cause is not None and self.cause.denies

    @property
    def blocked(self) -> str:
        """What could not be judged because of it."""
        if self.cause is None or not self.cause.blocked:
            return ""
        return narrative.blocked_summary(self.cause)

    @property
    def id(self) -> str:
        return self.outcome.id

    @property
    def statement(self) -> str:
        return narrative.statement_of(self.outcome)

    @property
    def title(self) -> str:
        """The clause in a few words; empty for one that this version does not know."""
        return narrative.title_of(self.outcome)

    @property
    def page(self) -> str:
        """Where the clause's own page is; empty for one that this version does not know."""
        return f"{DOCUMENTATION}/clauses/{self.id}.md" if self.statement else ""

    @cached_property
    def sides(self) -> tuple[Markup, Markup]:
        """Observed and expected, with what differs between them marked."""
        expected = self.outcome.evidence.get("expected")
        if self.tokens:  # which show it better
            return prose(narrative.headline(self.outcome)), prose(narrative.as_text(expected))
        return apart(
            narrative.headline(self.outcome),
            "" if expected is None else narrative.as_text(expected),
        )

    @property
    def mend(self) -> Markup:
        found = self.outcome.evidence.get("mend")
        return prose("" if found is None else narrative.as_text(found))

    @property
    def tokens(self) -> Mapping[str, Sequence[Token]]:
        return tokens(self.outcome.evidence.get("tokens"))

    @property
    def code(self) -> list[Mapping[str, Any]]:
        """The lines of the subject's own files that the failure points to."""
        found = self.outcome.evidence.get("code")
        lines = found if isinstance(found, list) else []
        return [
            line for line in lines if isinstance(line, Mapping) and {"where", "source"} <= {*line}
        ]

    @property
    def evidence(self) -> Iterator[tuple[str, str, bool]]:
        """All other evidence: label, text, and whether it is long."""
        for label, text in narrative.evidence_of(self.outcome, deep=True):
            if label not in (*_SHOWN_APART, "measured"):
                yield label, text, label in _LONG or "\n" in text

    @property
    def counterexample(self) -> str:
        return narrative.counterexample_of(self.outcome, deep=True)

    @cached_property
    def figures(self) -> Figures:
        return figures_of(self.outcome)

    @property
    def readings(self) -> list[Reading]:
        return readings(self.outcome)


@dataclass(frozen=True)
class Area:
    """The clauses of one area."""

    name: str
    clauses: tuple[Clause, ...]

    @property
    def met(self) -> bool:
        """Whether there is nothing to look at."""
        return not {clause.outcome.outcome for clause in self.clauses} - {
            Outcome.PASSED, Outcome.NOT_APPLICABLE,
        }  # fmt: skip

    @property
    def passed(self) -> int:
        return sum(clause.outcome.outcome is Outcome.PASSED for clause in self.clauses)

    @property
    def tally(self) -> list[tuple[str, list[ClauseOutcome]]]:
        """The outcomes, worst first, and the clauses with each."""
        by_outcome: dict[str, list[ClauseOutcome]] = {name: [] for name in _STANDINGS}
        for clause in self.clauses:
            by_outcome[clause.outcome.outcome.value].append(clause.outcome)
        return [(name, found) for name, found in by_outcome.items() if found]


def areas_of(verdict: Verdict) -> list[Area]:
    """The clauses by area, in the order of the catalogue."""
    by_area: dict[str, list[Clause]] = {}
    for outcome in verdict.asked:
        by_area.setdefault(area_of(outcome.id), []).append(Clause(outcome))
    return [Area(name, tuple(clauses)) for name, clauses in by_area.items()]


def _files(number: int) -> str:
    return f"{number} source file{'' if number == 1 else 's'}"


def facts(verdict: Verdict) -> list[tuple[str, str]]:
    """What the verdict is about, for the first screen."""
    assessment = verdict.assessment
    packages = assessment.environment.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    told: dict[str, Any] = {
        "target": assessment.target,
        "id": assessment.backbone_id,
        "date": verdict.issued_at.replace("T", " ").replace("Z", " UTC"),
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in (
                ("conformance", verdict.tool_version),
                *((name, versions.get(name)) for name in ("transformers", "torch")),
                ("Python", assessment.environment.get("python")),
            )
            if version
        ),
        "digest": digest_of_sources(sources)[:16] + f"… of {_files(len(sources))}"
        if (sources := assessment.sources)
        else "",
        "run": f"{assessment.weights} weights on {assessment.device}, budget {assessment.budget}, "
        f"seed {assessment.seed}, {assessment.seconds:.1f} s",
    }
    return [(name, narrative.as_text(value)) for name, value in told.items() if value]


def unasked(verdict: Verdict) -> list[str]:
    """The profiles that were not part of the run."""
    judged = {outcome.id for outcome in verdict.outcomes}
    return [name for name, ids in profiles().items() if name != "default" and not judged & set(ids)]
