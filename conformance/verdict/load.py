"""Reads a certificate back, and checks everything in it that can be checked.

A certificate that was cut off, is of another kind, lacks a field or contradicts itself is refused.
Who issued it is for a signature to show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess
from conformance.verdict.certificate import ASSESSMENT, PREDICATE, PREDICATE_TYPE, STATEMENT_TYPE
from conformance.verdict.outcomes import Assessment, ClauseOutcome, Outcome
from conformance.verdict.verdict import FAILED, Verdict, denies, warns
from conformance.verdict.waivers import WaiverUse

_NUMBER = (int, float)
_TEXT_LISTS = ("profiles", "only", "needs", "blocked")
"""The names of lists of strings, wherever they are in a certificate."""
_PREDICATE_FIELDS = {field.name: field.kind for field in PREDICATE}
_REQUIREMENT_FIELDS: dict[str, Any] = {
    "id": str,
    "level": str,
    "profile": str,
    "outcome": str,
    "summary": str,
    "evidence": dict,
    "needs": list,
    "counterexample": (dict, type(None)),
    "seconds": _NUMBER,
}
_WAIVER_FIELDS = dict.fromkeys(("id", "reason", "expires", "by", "note"), str)
_CAUSE_FIELDS: dict[str, Any] = {"id": str, "blocked": list}

_JSON_NAMES = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "a whole number",
    _NUMBER: "a number",
}


CERTIFICATE = "certificate.json"
"""The name of a certificate in the folder that `--out` names."""


class InvalidCertificate(CannotAssess):
    """A file is not a certificate of ours, or not a whole one."""


def read_certificate(path: Path) -> Verdict:
    """The verdict that the certificate in `path` records; a folder stands for the certificate that
    `--out` has written there.

    Raises:
        InvalidCertificate: saying what is wrong with the file.
    """
    if path.is_dir():
        path = path / CERTIFICATE
    document = _parsed(path)
    if not isinstance(document, dict) or document.get("_type") != STATEMENT_TYPE:
        raise InvalidCertificate(
            f"`{path}` is not a certificate: an in-toto Statement has `_type` {STATEMENT_TYPE}"
        )
    if document.get("predicateType") != PREDICATE_TYPE:
        raise InvalidCertificate(
            f"`{path}` attests `{document.get('predicateType')}`, but a certificate attests "
            f"{PREDICATE_TYPE}"
        )
    predicate = _checked(document.get("predicate"), _PREDICATE_FIELDS, "the predicate", path)
    verdict = _verdict(predicate, path)
    restated = verdict.as_certificate()
    for field in PREDICATE:
        if field.derived and predicate[field.name] not in (
            restated["predicate"][field.name],
            _once_derived(verdict, field.name),
        ):
            raise InvalidCertificate(
                f"`{path}` contradicts itself: its `{field.name}` does not follow from its "
                "`requirements`; it was edited"
            )
    if document.get("subject") != restated["subject"]:
        raise InvalidCertificate(
            f"`{path}` contradicts itself: its `subject` does not follow from its `sources`"
        )
    return verdict


def _once_derived(verdict: Verdict, name: str) -> Any:
    """What earlier versions wrote in this field of a partial run: clauses that were not requested
    counted too. None where they wrote what is written now."""
    if verdict.only is None:
        return None
    told = {
        "result": FAILED,
        "failedTests": [outcome.id for outcome in verdict.outcomes if denies(outcome)],
        "warnedTests": [outcome.id for outcome in verdict.outcomes if warns(outcome)],
    }
    return told.get(name)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InvalidCertificate(
            f"the certificate `{path}` cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidCertificate(
            f"`{path}` is not a whole JSON document ({error}): was it cut off?"
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _verdict(predicate: Mapping[str, Any], path: Path) -> Verdict:
    entries = [
        _checked(entry, _REQUIREMENT_FIELDS, f"requirement {number}", path)
        for number, entry in enumerate(predicate["requirements"], start=1)
    ]
    causes = [
        _checked(entry, _CAUSE_FIELDS, "a root cause", path) for entry in predicate["rootCauses"]
    ]
    root_of = {blocked: cause["id"] for cause in causes for blocked in cause["blocked"]}
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise InvalidCertificate(f"`{path}` lists a clause twice")
    waivers = [_checked(entry, _WAIVER_FIELDS, "a waiver", path) for entry in predicate["waivers"]]
    tool = _checked(predicate["tool"], {"name": str, "version": str}, "`tool`", path)
    for hub_id, stand_in in predicate["hub"].items():
        _checked(stand_in, {}, f"`hub` for {hub_id}", path)
    _checked(predicate["sources"], dict.fromkeys(predicate["sources"], str), "`sources`", path)
    told = {attribute: predicate[field.name] for attribute, field in ASSESSMENT.items()}
    assessment = Assessment(
        **{
            **told,
            "profiles": tuple(told["profiles"]),
            "outcomes": tuple(_outcome(entry, root_of.get(entry["id"]), path) for entry in entries),
        }
    )
    try:
        uses = tuple(WaiverUse.from_json(entry) for entry in waivers)
    except ValueError as error:
        raise InvalidCertificate(f"`{path}` has a waiver with a bad date: {error}") from error
    return Verdict(
        assessment=assessment,
        only=None if predicate["only"] is None else tuple(predicate["only"]),
        waivers=uses,
        configuration=tuple(predicate["configuration"]),
        issued_at=predicate["issuedAt"],
        tool_version=tool["version"],
    )


def _outcome(entry: Mapping[str, Any], root_cause: str | None, path: Path) -> ClauseOutcome:
    try:
        outcome = Outcome(entry["outcome"])
    except ValueError:
        known = ", ".join(known.value for known in Outcome)
        raise InvalidCertificate(
            f"`{path}`: {entry['id']} is `{entry['outcome']}`, which is none of {known}"
        ) from None
    fields = {**entry, "outcome": outcome, "needs": tuple(entry["needs"])}
    return ClauseOutcome(
        **{name: fields[name] for name in _REQUIREMENT_FIELDS}, root_cause=root_cause
    )


def _checked(value: Any, fields: Mapping[str, Any], what: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidCertificate(f"`{path}`: {what} should be an object")
    for name, kind in fields.items():
        if name not in value:
            raise InvalidCertificate(f"`{path}`: {what} has no `{name}`")
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            expected = _JSON_NAMES.get(kind) or f"{_JSON_NAMES[kind[0]]} or null"
            raise InvalidCertificate(
                f"`{path}`: `{name}` of {what} is {value[name]!r:.60}, but should be {expected}"
            )
        if name in _TEXT_LISTS and not all(isinstance(item, str) for item in value[name] or ()):
            raise InvalidCertificate(f"`{path}`: `{name}` of {what} should hold only strings")
    return value
