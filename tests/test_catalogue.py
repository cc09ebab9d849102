"""The catalogue, the profiles and the suite say the same."""

from __future__ import annotations

import pytest

from conformance.catalogue import (
    CATALOGUE_FILE,
    MUST,
    SHOULD,
    Requirement,
    catalogue,
    expected_clauses,
    in_order_of_need,
    profiles,
)
from conformance.verdict.upstream import known_defects


def test_the_catalogue_is_what_the_suite_says() -> None:
    from conformance.suite.__main__ import catalogue_text

    assert CATALOGUE_FILE.read_text(encoding="utf-8") == catalogue_text(), (
        "run python -m conformance.suite"
    )


def test_the_page_of_requirements_is_what_the_suite_says() -> None:
    from conformance.suite.__main__ import DOCUMENT, document

    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m conformance.suite"


def test_profiles_expect_exactly_the_suite() -> None:
    expected = {clause for ids in profiles().values() for clause in ids}
    assert expected == set(catalogue())
    for name, ids in profiles().items():
        if name != "default":
            assert {catalogue()[clause].profile for clause in ids} == {name}


def test_needs_name_clauses_and_form_no_cycle() -> None:
    known = catalogue()
    assert all(need in known for requirement in known.values() for need in requirement.needs)
    ordered = in_order_of_need(known, known)
    assert sorted(ordered) == sorted(known)
    place = {clause: index for index, clause in enumerate(ordered)}
    assert all(place[need] < place[clause] for clause in known for need in known[clause].needs)


def test_a_must_needs_no_should() -> None:
    known = catalogue()
    wrong = [
        (clause, need)
        for clause, requirement in known.items()
        for need in requirement.needs
        if requirement.level == MUST and known[need].level == SHOULD
    ]
    assert not wrong, "a SHOULD that fails would deny a certificate by blocking a MUST"


def test_a_cycle_is_refused() -> None:
    def clause(name: str, *needs: str) -> Requirement:
        return Requirement(name, MUST, "core", needs, (), "statement", "test")

    with pytest.raises(ValueError, match="A-01 -> B-01 -> A-01"):
        in_order_of_need(
            ["A-01", "B-01"], {"A-01": clause("A-01", "B-01"), "B-01": clause("B-01", "A-01")}
        )


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        expected_clauses(["nonsense"])


def test_the_known_defects_are_about_clauses_that_exist() -> None:
    assert {defect.clause for defect in known_defects()} <= catalogue().keys()
