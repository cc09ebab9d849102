"""The form of a certificate: an in-toto Statement, whose own fields extend the test-result
predicate.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md defines `result`,
`configuration`, `passedTests`, `warnedTests` and `failedTests`. A clause that does not apply is in
none of the three lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from conformance.verdict.outcomes import ClauseOutcome
from conformance.verdict.resources import TOOL

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"


def plain(value: Any) -> Any:
    """`value` in JSON's own types: whatever else a check has put into its evidence becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    # JSON has no infinities, and only Python could read a certificate with one.
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def serialise(certificate: Mapping[str, Any]) -> str:
    """The certificate's text: ASCII only, so that even half a surrogate pair in a counterexample
    survives any editor."""
    return json.dumps(certificate, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Field:
    """One field of the predicate.

    `attribute` is its path in a `Verdict`, `kind` its JSON type or types in the file, and `form`
    how it is written. A derived field follows from the others; it is not read back, only compared.
    """

    attribute: str
    name: str
    kind: Any
    form: Callable[[Any], Any] = plain
    derived: bool = False

    def written(self, verdict: Any) -> Any:
        """The field of a `Verdict`, in JSON's own types."""
        return self.form(attrgetter(self.attribute)(verdict))


def _sorted(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): plain(mapping[key]) for key in sorted(mapping, key=str)}


def _seconds(value: float) -> float:
    return round(value, 4)


def _ids(outcomes: Iterable[ClauseOutcome]) -> list[str]:
    return [outcome.id for outcome in outcomes]


def _causes(causes: Iterable[Any]) -> list[dict[str, Any]]:
    return [{"id": cause.outcome.id, "blocked": _ids(cause.blocked)} for cause in causes]


def _requirements(outcomes: Iterable[ClauseOutcome]) -> list[dict[str, Any]]:
    return [
        {
            name: _sorted(value) if name == "evidence" else plain(value)
            for name, value in outcome.as_json().items()
        }
        for outcome in outcomes
    ]


def _each_as_json(uses: Iterable[Any]) -> list[dict[str, Any]]:
    return [use.as_json() for use in uses]


def _tool(version: str) -> dict[str, str]:
    return {"name": TOOL, "version": version}


_NUMBER = (int, float)
_MAYBE_TEXT = (str, type(None))

PREDICATE = (
    Field("result", "result", str, derived=True),
    Field("configuration", "configuration", list),
    Field("passed", "passedTests", list, _ids, derived=True),
    Field("warned", "warnedTests", list, _ids, derived=True),
    Field("denying", "failedTests", list, _ids, derived=True),
    Field("assessment.target", "target", str),
    Field("assessment.backbone_id", "backboneId", str),
    Field("assessment.profiles", "profiles", list),
    Field("only", "only", (list, type(None))),
    Field("assessment.weights", "weights", str),
    Field("assessment.device", "device", str),
    Field("assessment.seed", "seed", int),
    Field("assessment.budget", "budget", str),
    Field("assessment.breakdown", "breakdown", _MAYBE_TEXT),
    Field("root_causes", "rootCauses", list, _causes, derived=True),
    Field("assessment.outcomes", "requirements", list, _requirements),
    Field("waivers", "waivers", list, _each_as_json),
    Field("assessment.environment", "environment", dict, _sorted),
    Field("assessment.declarations", "subjectDeclarations", dict, _sorted),
    Field("assessment.sources", "sources", dict, _sorted),
    Field("assessment.hub", "hub", dict, _sorted),
    Field("tool_version", "tool", dict, _tool),
    Field("issued_at", "issuedAt", str),
    Field("assessment.seconds", "seconds", _NUMBER, _seconds),
)
"""The fields of the predicate, in the order in which they are written."""
ASSESSMENT = {
    field.attribute.removeprefix("assessment."): field
    for field in PREDICATE
    if field.attribute.startswith("assessment.")
}
"""The fields that an `Assessment` has, by its attribute."""
