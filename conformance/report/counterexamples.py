"""`counterexamples/<ID>.py`: a script for each failed clause that reproduces the failure, until it
is mended."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from conformance.report import narrative
from conformance.verdict.outcomes import Assessment, ClauseOutcome, Outcome
from conformance.verdict.verdict import Verdict

MARK = '"""Counterexample of '
"""How every script begins; a file in that folder that begins otherwise is not ours to replace."""

_WIDTH = 100


def counterexamples(verdict: Verdict) -> dict[str, str]:
    """File name to Python source, one for each clause that failed. The sources are ASCII."""
    failed = (outcome for outcome in verdict.outcomes if outcome.outcome is Outcome.FAILED)
    return {f"{outcome.id}.py": _script(outcome, verdict.assessment) for outcome in failed}


def _script(outcome: ClauseOutcome, assessment: Assessment) -> str:
    arguments = {
        "target": assessment.target,
        "backbone_id": assessment.backbone_id,
        "weights": assessment.weights,
        "seed": assessment.seed,
    }
    return "\n".join(
        [
            f"{MARK}{_docstring(outcome)}",
            "",
            "from conformance.replay import replay",
            "",
            "raise SystemExit(",
            "    replay(",
            f"        {outcome.id!a},",
            *(f"        {name}={value!a}," for name, value in arguments.items()),
            *_draws(outcome.counterexample or {}),
            "    )",
            ")",
            "",
        ]
    )


def _docstring(outcome: ClauseOutcome) -> str:
    paragraphs = [
        f"{outcome.id} ({outcome.level}): {narrative.statement_of(outcome)}",
        f"observed: {narrative.headline(outcome)}",
        *(f"{label}: {narrative.one_line(text)}" for label, text in narrative.evidence_of(outcome)),
        "Run it from the directory that `conformance certify` was run in. Exit status: 1 while "
        "the clause "
        "fails, 0 once it holds.",
    ]
    wrapped = "\n\n".join(
        textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False) for paragraph in paragraphs
    )
    return f'{_literal(wrapped)}\n"""'


def _literal(text: str) -> str:
    """`text` for the inside of a triple-quoted string, in ASCII."""
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return escaped.encode("ascii", "backslashreplace").decode("ascii")


def _draws(draws: Mapping[str, Any]) -> list[str]:
    if not draws:
        return ["        draws={},"]
    return [
        "        draws={",
        *(f"            {name!a}: {value!a}," for name, value in draws.items()),
        "        },",
    ]
