"""`junit.xml`, for CI tools that show test results.

JUnit has no warnings: an unmet clause that does not deny the certificate is *skipped*, and its
message says what it is. A clause that denies the certificate is a failure or an error, never a
skip, and a last test case stands for the certificate itself, so a file with neither failures nor a
certificate that was skipped (after a run of chosen clauses) means exactly that there is one.
"""

from __future__ import annotations

from xml.etree import ElementTree

from conformance.report import narrative
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from conformance.verdict.verdict import Verdict


def junit(verdict: Verdict) -> str:
    """The XML text, valid against the schema of Jenkins' xUnit plugin (junit-10.xsd)."""
    cases = [_clause(outcome, verdict) for outcome in verdict.asked]
    cases.append(_certificate(verdict))
    assessment = verdict.assessment
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }
    seconds = _seconds(assessment.seconds)
    root = ElementTree.Element("testsuites", {"name": "conformance", "time": seconds, **counts})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": narrative.one_line(f"conformance {assessment.backbone_id}"),
            **counts,
            "skipped": str(sum(case.find("skipped") is not None for case in cases)),
            "time": seconds,
            "timestamp": verdict.issued_at.rstrip("Z"),
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in narrative.conditions(verdict).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    suite.extend(cases)
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


def _clause(outcome: ClauseOutcome, verdict: Verdict) -> ElementTree.Element:
    area = outcome.id.rpartition("-")[0]
    case = _case(
        f"{outcome.id} {narrative.title_of(outcome)}".strip(),
        f"conformance.{area}",
        outcome.seconds,
    )
    if outcome.outcome is Outcome.PASSED:
        return case
    denying = "failure" if outcome.outcome is Outcome.FAILED else "error"
    kind = denying if outcome in verdict.denying else "skipped"
    message = f"{outcome.level} {outcome.outcome}: {narrative.headline(outcome)}"
    detail = ElementTree.SubElement(case, kind, {"type": outcome.outcome.value, "message": message})
    lines = [
        f"{outcome.level}: {narrative.statement_of(outcome)}",
        f"observed: {narrative.headline(outcome)}",
    ]
    lines += [f"{label}: {text}" for label, text in narrative.evidence_of(outcome, deep=True)]
    if outcome.counterexample:
        lines.append(f"shown by: {narrative.counterexample_of(outcome, deep=True)}")
    detail.text = "\n".join(lines)
    return case


def _certificate(verdict: Verdict) -> ElementTree.Element:
    case = _case("certificate", "conformance", 0.0)
    if not verdict.certified:
        message = "; ".join(map(narrative.one_line, verdict.reasons_for_denial))
        kind = "error" if verdict.result == "FAILED" else "skipped"
        told = ElementTree.SubElement(case, kind, {"type": "not-certified", "message": message})
        told.text = narrative.visible(str(verdict))
    return case


def _case(name: str, classname: str, seconds: float) -> ElementTree.Element:
    attributes = {
        "name": narrative.one_line(name),
        "classname": narrative.one_line(classname),
        "time": _seconds(seconds),
    }
    return ElementTree.Element("testcase", attributes)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"
