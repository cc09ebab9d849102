"""The verdict where GitHub Actions shows it: an annotation for each cause, at the author's own
line, the summary on the page of the job, and the result as outputs of the step.

Source: "Workflow commands for GitHub Actions" and "Store information in variables" in GitHub's
documentation.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance.report import narrative
from conformance.report.markdown import markdown
from conformance.report.terminal import say
from conformance.verdict.outcomes import ClauseOutcome
from conformance.verdict.verdict import Verdict

_PLACE = re.compile(r"(?P<file>[^:\n]+\.py):(?P<line>\d+)")
_MOST_OF_A_KIND = 10
"""What GitHub shows of a step's errors, and of its warnings; it drops the rest."""
_MOST_BYTES = 1024 * 1024
"""What a step may write into its summary, or its outputs; of longer ones nothing is shown."""


def runs_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a step of a workflow."""
    return environment.get("GITHUB_ACTIONS") == "true"


def tell_github(verdict: Verdict, environment: Mapping[str, str] = os.environ) -> None:
    """Annotate the causes on standard error, which GitHub reads as it does standard output; add the
    summary to the job's page, and `result` and `certified` to the step's outputs."""
    for line in workflow_commands(verdict, environment):
        say(line, sys.stderr)
    outputs = f"result={verdict.result}\ncertified={str(verdict.certified).lower()}\n"
    for name, text in (("GITHUB_STEP_SUMMARY", markdown(verdict)), ("GITHUB_OUTPUT", outputs)):
        if environment.get(name):
            _append(Path(environment[name]), text)


def tell_github_refusal(message: str) -> None:
    """Annotate that nothing could be judged, and why."""
    say(_command("error", "conformance could not assess", message), sys.stderr)


def workflow_commands(
    verdict: Verdict, environment: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """A workflow command for each cause, errors (what denies the certificate) before warnings."""
    if verdict.assessment.breakdown is not None:
        yield _command("error", "conformance: run cut short", verdict.assessment.breakdown)
    told = {"error": 0, "warning": 0}
    for cause in verdict.root_causes:
        kind = "error" if cause.denies else "warning"
        told[kind] += 1
        if told[kind] > _MOST_OF_A_KIND:
            continue
        outcome = cause.outcome
        sentences = [narrative.headline(outcome)]
        sentences += [
            f"{label}: {text}"
            for label, text in narrative.evidence_of(outcome)
            if label in ("should be", "to mend")
        ]
        yield _command(
            kind,
            f"{outcome.id} {outcome.outcome}",
            "\n".join(sentences),
            _line_of(outcome, environment),
        )


def _line_of(outcome: ClauseOutcome, environment: Mapping[str, str]) -> dict[str, str]:
    """`file` and `line` of the author's code, as the repository knows them; nothing for a file that
    is not in it."""
    code: Any = outcome.evidence.get("code")
    first = code[0].get("where", "") if isinstance(code, list) and code else ""
    place = _PLACE.match(first)
    root = Path(environment.get("GITHUB_WORKSPACE") or os.curdir).resolve()
    file = Path(place["file"]).resolve() if place else None
    if place is None or file is None or not file.is_file() or not file.is_relative_to(root):
        return {}
    return {"file": file.relative_to(root).as_posix(), "line": place["line"]}


def _command(kind: str, title: str, message: str, where: Mapping[str, str] = {}) -> str:
    properties = {**where, "title": title}
    told = ",".join(
        f"{name}={_escaped(narrative.visible(value)).replace(':', '%3A').replace(',', '%2C')}"
        for name, value in properties.items()
    )
    return f"::{kind} {told}::{_escaped(narrative.visible(message))}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _append(file: Path, text: str) -> None:
    """Add what fits; that a file of GitHub's cannot be written changes no verdict."""
    try:
        with file.open("a", encoding="utf-8") as stream:
            if stream.tell() + len(text.encode()) <= _MOST_BYTES:
                stream.write(text)
    except OSError as error:
        say(f"`{file}` is not written: {error.strerror or error}", sys.stderr)
