"""The certificate: a verdict as an in-toto Statement, in which everything else is an extension of the
test-result predicate.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md defines ``result``,
``configuration``, ``passedTests``, ``warnedTests`` and ``failedTests``. A clause that does not apply is in
none of the three lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from conformance.verdict.judgement import Verdict
from conformance.verdict.outcomes import Outcome
from conformance.verdict.resources import TOOL, digest_of_sources

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"


def statement(verdict: Verdict) -> dict[str, Any]:
    """The certificate as a JSON object: equal verdicts give equal objects, key order included."""
    assessment = verdict.assessment
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": assessment.target, "digest": {"sha256": digest_of_sources(assessment.sources)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": verdict.result,
            "configuration": plain(verdict.configuration),
            "passedTests": [outcome.id for outcome in verdict.outcomes if outcome.outcome is Outcome.PASSED],
            "warnedTests": [outcome.id for outcome in verdict.warned],
            "failedTests": [outcome.id for outcome in verdict.denying],
            "target": assessment.target,
            "backboneId": assessment.backbone_id,
            "profiles": list(assessment.profiles),
            "only": None if verdict.only is None else list(verdict.only),
            "weights": assessment.weights,
            "device": assessment.device,
            "seed": assessment.seed,
            "budget": assessment.budget,
            "breakdown": assessment.breakdown,
            "rootCauses": [
                {"id": cause.outcome.id, "blocked": [blocked.id for blocked in cause.blocked]}
                for cause in verdict.root_causes
            ],
            "requirements": [_requirement(outcome.as_json()) for outcome in verdict.outcomes],
            "waivers": [use.as_json() for use in verdict.waivers],
            "environment": _sorted(assessment.environment),
            "subjectDeclarations": _sorted(assessment.declarations),
            "sources": _sorted(assessment.sources),
            "hub": _sorted(assessment.hub),
            "tool": {"name": TOOL, "version": verdict.tool_version},
            "issuedAt": verdict.issued_at,
            "seconds": round(assessment.seconds, 4),
        },
    }


def serialise(certificate: Mapping[str, Any]) -> str:
    """The certificate's text: ASCII only, so that even half a surrogate pair in a counterexample survives any
    editor."""
    return json.dumps(certificate, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """``value`` in JSON's own types: whatever else a check has put into its evidence becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    # JSON has no infinities, and a certificate with one could be read by Python alone.
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def _requirement(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sorted(value) if name == "evidence" else plain(value) for name, value in entry.items()}


def _sorted(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): plain(mapping[key]) for key in sorted(mapping, key=str)}
