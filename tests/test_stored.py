"""What an earlier release wrote is still read, and comes out as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.bench.compare import compare_stored
from conformance.bench.results.history import history
from conformance.bench.results.stored import read
from conformance.verdict.certificate import serialise
from conformance.verdict.difference import changed_clauses
from conformance.verdict.load import InvalidCertificate, read_certificate
from tests import ROOT, schemas

STORED = ROOT / "tests" / "stored"
"""Written at commit 55ce47b, before the rooms were rearranged; the machine's paths are replaced."""


@pytest.mark.parametrize(("name", "result"), [("certified", "WARNED"), ("refused", "FAILED")])
def test_a_certificate_comes_out_byte_for_byte(name: str, result: str) -> None:
    path = STORED / f"{name}.json"
    verdict = read_certificate(path)
    assert verdict.result == result
    assert serialise(verdict.as_certificate()) == path.read_text(encoding="utf-8")
    schemas.check("certificate", verdict.as_certificate())


def test_certificates_are_compared() -> None:
    changes = changed_clauses(
        read_certificate(STORED / "certified.json"), read_certificate(STORED / "refused.json")
    )
    assert [change.what for change in changes if change.worse and change.after == "failed"] == [
        "PAD-02",
        "PAD-03",
        "PAD-04",
        "PAD-09",
    ]


def test_runs_are_read() -> None:
    recording = read(STORED / "runs" / "alone")
    assert [name.partition("[")[0] for name in recording.names] == ["prefill", "decode"]
    assert all(len(list(filter(None, recording.seconds(name)))) == 2 for name in recording.names)
    assert set(history([STORED / "runs" / "alone"]).rows) == set(recording.names)


def test_pairs_are_judged_as_they_were() -> None:
    runs = STORED / "runs" / "turns"
    comparison, _ = compare_stored(runs / "base", runs / "head", (), ())
    was = json.loads((STORED / "verdict.json").read_text(encoding="utf-8"))
    del was["environment"]
    told = {**comparison.as_json(), "base": was["base"], "head": was["head"]}
    for one in was["benchmarks"]:
        one.pop("why")  # prose may be rewritten
    told["benchmarks"] = [  # and fields added
        {key: one[key] for key in before}
        for one, before in zip(told["benchmarks"], was["benchmarks"], strict=True)
    ]
    assert told.pop("detectable") == pytest.approx(was.pop("detectable"))
    assert told == was


@pytest.mark.parametrize(
    "path", sorted(STORED.rglob("*.json")), ids=lambda path: path.relative_to(STORED).as_posix()
)
def test_the_schemas_describe_them(path: Path) -> None:
    names = {"certified.json": "certificate", "refused.json": "certificate"}
    names["verdict.json"] = "bench-verdict"
    schemas.check(names.get(path.name, "bench-run"), json.loads(path.read_text(encoding="utf-8")))


def test_a_partial_run_as_it_once_was_written_is_read(tmp_path: Path) -> None:
    certificate = json.loads((STORED / "refused.json").read_text(encoding="utf-8"))
    predicate = certificate["predicate"]
    chosen = predicate["rootCauses"][0]["id"]
    predicate["only"] = [chosen]
    for one in predicate["requirements"]:
        if one["id"] != chosen:
            one.update(outcome="not-run", summary="not requested", evidence={}, counterexample=None)
    predicate["passedTests"] = []
    predicate["rootCauses"] = [{"id": chosen, "blocked": []}]
    # The clauses that were not requested counted too.
    of_level = {"MUST": predicate["failedTests"], "SHOULD": predicate["warnedTests"]}
    for level, listed in of_level.items():
        listed[:] = [one["id"] for one in predicate["requirements"] if one["level"] == level]
    path = tmp_path / "certificate.json"
    path.write_text(serialise(certificate), encoding="utf-8")
    verdict = read_certificate(tmp_path)
    assert [outcome.id for outcome in verdict.denying] == [chosen]
    predicate["result"] = "PASSED"
    path.write_text(serialise(certificate), encoding="utf-8")
    with pytest.raises(InvalidCertificate, match="contradicts itself"):
        read_certificate(path)
