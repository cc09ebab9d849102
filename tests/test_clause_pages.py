"""The pages of clauses say what the suite, the planted defects and the list of defects say."""

from __future__ import annotations

import re

import pytest

from conformance.catalogue import AREAS, area_of, catalogue
from conformance.toml import load_toml
from tests import ROOT
from tests.experiments.clause_pages import FOLDER, defects, pages
from tests.mutants import all_mutants

CITED = re.compile(r"\bdocs/[\w-]+\.md\b")


def test_every_page_is_fresh(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--mutants") not in ("full", "own"):
        pytest.skip("the pages tell of all planted defects, on the newest transformers")
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert found == pages(all_mutants()), "run python -m tests.experiments.clause_pages"


def test_every_clause_is_of_an_area_and_has_a_page() -> None:
    assert {area_of(clause) for clause in catalogue()} <= set(AREAS.values())
    assert {path.stem for path in FOLDER.glob("*.md")} == {*catalogue(), "index"}


def test_planted_defects_stand_for_defects_that_are_listed() -> None:
    assert {number for one in all_mutants() for number in one.defects} <= set(defects())


def test_the_wheel_has_the_documents_that_statements_cite() -> None:
    built = load_toml(ROOT / "pyproject.toml")["tool"]["hatch"]["build"]["targets"]["wheel"]
    cited = {name for one in catalogue().values() for name in CITED.findall(one.statement)}
    assert cited
    assert {*cited, "docs/clauses"} <= set(built["force-include"])


def test_no_page_has_a_heading_with_nothing_below() -> None:
    for path in FOLDER.glob("*.md"):
        assert not re.search(r"^## .*\n\n(?=## |\Z)", path.read_text(encoding="utf-8"), re.M), path
