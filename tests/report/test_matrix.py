"""The site of many certificates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conformance.report.matrix import NoCertificates, badge, count, entries_in, index, write_site
from conformance.verdict.certificate import serialise
from conformance.verdict.load import InvalidCertificate
from tests.verdict.samples import one_cause_that_blocks, outcome, verdict


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    for name, found in {
        "sound": verdict(),
        "warned": verdict(outcome("PAD-04", "failed")),
        "refused": one_cause_that_blocks(),
    }.items():
        (runs / name).mkdir(parents=True)
        text = serialise(found.as_certificate())
        (runs / name / "certificate.json").write_text(text, encoding="utf-8")
    return runs


def test_a_folder_for_each_certificate(certificates: Path, tmp_path: Path) -> None:
    entries = entries_in([certificates])
    assert len({entry.slug for entry in entries}) == 3
    assert count(entries).startswith("3 certificates: ")
    out, pages = tmp_path / "site", list[int]()
    write_site(entries, out, pages.append)
    assert pages == [1, 2, 3]
    for entry in entries:
        folder = out / entry.slug
        assert sorted(path.name for path in folder.iterdir()) == [
            "badge.json", "badge.svg", "certificate.json", "index.html",
        ]  # fmt: skip
        shield = json.loads((folder / "badge.json").read_text())
        assert (shield["schemaVersion"], shield["message"]) == (1, entry.standing)
    listed = json.loads((out / "matrix.json").read_text())
    assert {one["standing"] for one in listed} >= {"not certified"}


def test_a_site_is_replaced_and_nothing_else(certificates: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    write_site(entries_in([certificates]), out)
    (out / "mine").mkdir()
    shutil.rmtree(certificates / "refused")
    entries = entries_in([certificates])
    write_site(entries, out)
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"mine", *(entry.slug for entry in entries)}
    (out / "matrix.json").write_text('[{"folder": "../runs"}, {"folder": "mine"}]')
    write_site(entries, out)
    assert certificates.is_dir()


def test_what_comes_from_a_subject_is_escaped(certificates: Path) -> None:
    path = certificates / "sound" / "certificate.json"
    path.write_text(path.read_text().replace("mistral-v0.1-7b-instruct", "<b>mine"))
    page = index(entries_in([certificates]))
    assert "&lt;b&gt;mine" in page
    assert "<b>mine" not in page
    assert page.count("<script") == 1


@pytest.mark.parametrize("standing", ["certified", "certified, with remarks", "not certified"])
def test_a_badge_is_a_drawing_that_says_what_it_shows(standing: str) -> None:
    root = ElementTree.fromstring(badge(standing))
    assert root.attrib["aria-label"] == f"conformance: {standing}"


@pytest.mark.spoils_files
def test_bad_places_are_named(certificates: Path, tmp_path: Path) -> None:
    with pytest.raises(NoCertificates, match="does not exist"):
        entries_in([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCertificates, match=r"holds no certificate.json"):
        entries_in([certificates, tmp_path / "empty"])
    (certificates / "sound" / "certificate.json").write_text("{}")
    with pytest.raises(InvalidCertificate):
        entries_in([certificates])
