from __future__ import annotations

import hashlib
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from conformance.verdict.certificate import serialise
from conformance.verdict.load import InvalidCertificate, read_certificate
from conformance.verdict.reaching import reach_verdict
from conformance.verdict.verdict import Verdict
from conformance.verdict.waivers import Waiver
from tests.verdict.samples import (
    NASTY,
    NOW,
    assessment,
    hang,
    one_cause_that_blocks,
    outcome,
    verdict,
)


def waived() -> Verdict:
    return reach_verdict(
        assessment(outcome("PAD-03", "failed")),
        waivers=[Waiver("PAD-03", NASTY, date(2027, 1, 31), "Ada")],
        now=NOW,
    )


def partial() -> Verdict:
    return reach_verdict(assessment(outcomes=(outcome("PAD-03"),)), only=("PAD-03",), now=NOW)


VERDICTS = [verdict, one_cause_that_blocks, hang, waived, partial]


def test_it_is_an_in_toto_test_result() -> None:
    certificate = one_cause_that_blocks().as_certificate()
    assert list(certificate) == ["_type", "subject", "predicateType", "predicate"]
    assert certificate["_type"] == "https://in-toto.io/Statement/v1"
    assert certificate["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate = certificate["predicate"]
    assert predicate["result"] == "FAILED"
    assert predicate["passedTests"] == ["CON-01", "EMB-01", "EMB-11"]
    assert predicate["failedTests"] == ["PAD-01", "PAD-02", "PAD-03"]
    assert predicate["warnedTests"] == ["PAD-04"]
    assert predicate["rootCauses"] == [{"id": "PAD-01", "blocked": ["PAD-02", "PAD-03", "PAD-04"]}]


def test_what_shaped_the_run_is_named_by_digest() -> None:
    configuration = reach_verdict(
        assessment(), files={"waivers.toml": "ef" * 32}, now=NOW
    ).as_certificate()["predicate"]["configuration"]
    assert all("digest" in descriptor or "uri" in descriptor for descriptor in configuration)
    by_name = {descriptor["name"]: descriptor for descriptor in configuration}
    assert by_name["waivers.toml"]["digest"] == {"sha256": "ef" * 32}
    assert by_name["mistralai/Mistral-7B-v0.1"]["digest"] == {"sha256": "cd" * 32}
    assert by_name["mistralai/Mistral-7B-v0.1"]["annotations"] == {"tokenizer": "real"}
    assert {"conformance/catalogue.json", "conformance/profiles.toml"} <= set(by_name)


def test_the_subject_is_the_digest_of_its_sources_wherever_they_lie() -> None:
    sources = {"b.py": "22" * 32, "a.py": "11" * 32}
    expected = hashlib.sha256(f"{'11' * 32}\n{'22' * 32}\n".encode()).hexdigest()
    assert verdict(sources=sources).as_certificate()["subject"] == [
        {"name": "mistral-v0.1-7b-instruct", "digest": {"sha256": expected}}
    ]


def test_the_fields_of_a_requirement_are_the_published_ones() -> None:
    entry = verdict().as_certificate()["predicate"]["requirements"][0]
    assert list(entry) == [
        "id", "level", "profile", "outcome", "summary", "evidence", "needs", "counterexample",
        "seconds",
    ]  # fmt: skip


def test_equal_runs_give_equal_bytes() -> None:
    one = verdict(environment={"torch": "2.13.0", "python": "3.11"})
    other = verdict(environment={"python": "3.11", "torch": "2.13.0"})
    assert serialise(one.as_certificate()) == serialise(other.as_certificate())


def test_it_is_ascii_json_whatever_the_evidence_holds() -> None:
    evidence = {
        "infinite": math.inf,
        "nothing": math.nan,
        "path": Path("x"),
        "set": {2, 1},
        "pair": (1, NASTY),
    }
    text = serialise(verdict(outcome("PAD-03", "failed", evidence=evidence)).as_certificate())
    assert text.isascii()
    found = json.loads(text)["predicate"]["requirements"][3]["evidence"]
    assert found == {
        "infinite": "inf",
        "nothing": "nan",
        "path": "x",
        "set": [1, 2],
        "pair": [1, NASTY],
    }


@pytest.mark.parametrize("make", VERDICTS)
def test_a_certificate_read_back_says_the_same(tmp_path: Path, make: Any) -> None:
    original = make()
    path = tmp_path / "certificate.json"
    path.write_text(serialise(original.as_certificate()))
    again = read_certificate(path)
    assert serialise(again.as_certificate()) == path.read_text()
    assert (again.result, again.exit_status, again.notes) == (
        original.result,
        original.exit_status,
        original.notes,
    )


@pytest.mark.spoils_files
def test_a_certificate_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    text = serialise(one_cause_that_blocks().as_certificate()).rstrip()
    path = tmp_path / "certificate.json"
    for length in range(0, len(text), 97):
        path.write_text(text[:length])
        with pytest.raises(InvalidCertificate):
            read_certificate(path)


def _without(*names: str | int) -> Any:
    def remove(certificate: dict[str, Any]) -> None:
        place: Any = certificate
        for name in names[:-1]:
            place = place[name]
        del place[names[-1]]

    return remove


def _with(value: Any, *names: Any) -> Any:
    def replace(certificate: dict[str, Any]) -> None:
        place = certificate
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = value

    return replace


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_without("_type"), "is not a certificate"),
        (
            _with("https://slsa.dev/provenance/v1", "predicateType"),
            "attests `https://slsa.dev/provenance/v1`",
        ),
        (_with([], "predicate"), "the predicate should be an object"),
        (_without("predicate", "seed"), "has no `seed`"),
        (
            _with("0", "predicate", "seed"),
            "`seed` of the predicate is '0', but should be a whole number",
        ),
        (_with(True, "predicate", "seed"), "`seed` of the predicate is True"),
        (_without("predicate", "requirements", 0, "level"), "requirement 1 has no `level`"),
        (_with("splendid", "predicate", "requirements", 0, "outcome"), "CON-01 is `splendid`"),
        (_with("PASSED", "predicate", "result"), "`result` does not follow"),
        (_with("passed", "predicate", "requirements", 1, "outcome"), "contradicts itself"),
        (_with({"other.py": "00"}, "predicate", "sources"), "`subject` does not follow"),
        (_with("CON-01", "predicate", "requirements", 1, "id"), "lists a clause twice"),
    ],
)
@pytest.mark.spoils_files
def test_a_certificate_that_was_tampered_with_is_refused(
    tmp_path: Path, edit: Any, message: str
) -> None:
    certificate = one_cause_that_blocks().as_certificate()
    edit(certificate)
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate))
    with pytest.raises(InvalidCertificate, match=message):
        read_certificate(path)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"x": NaN}']
)
@pytest.mark.spoils_files
def test_what_is_no_certificate_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(content)
    with pytest.raises(InvalidCertificate):
        read_certificate(path)


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCertificate, match="No such file"):
        read_certificate(tmp_path / "absent.json")


@pytest.mark.parametrize("value", [None, 3, "text", [], [[]], {}, {"a": 1}])
@pytest.mark.spoils_files
def test_no_field_of_a_wrong_kind_gets_through_or_crashes(tmp_path: Path, value: Any) -> None:
    original = serialise(one_cause_that_blocks().as_certificate())
    path = tmp_path / "certificate.json"
    predicate = json.loads(original)["predicate"]
    places: list[tuple[str | int, ...]] = [("predicate", name) for name in predicate]
    places += [("predicate", "requirements", 1, name) for name in predicate["requirements"][1]]
    places += [("predicate", "rootCauses", 0, name) for name in predicate["rootCauses"][0]]
    for place in places:
        certificate = json.loads(original)
        _with(value, *place)(certificate)
        path.write_text(json.dumps(certificate))
        try:
            assert serialise(read_certificate(path).as_certificate())
        except InvalidCertificate:
            continue
