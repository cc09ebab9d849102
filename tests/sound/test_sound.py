"""Sound backbones as other people write them are certified: no clause cries wolf."""

from __future__ import annotations

import pytest

from conformance.catalogue import MUST, catalogue
from conformance.verdict.outcomes import Outcome
from tests.forks import Case, judge_in_forks
from tests.sound import Sound, all_sound

pytestmark = pytest.mark.slow

SAMPLE = 22
"""One variant in so many is judged here, half as many on older releases; `tox -e matrix` judges
all."""
HARMLESS = {Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.UPSTREAM}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a variant, of a sample: all of them take longer than a change should wait for."""
    if "variant" in metafunc.fixturenames:
        share = {"full": 1, "own": SAMPLE, "sample": 2 * SAMPLE, "none": 0}[
            metafunc.config.getoption("--mutants")
        ]
        known = all_sound()[:: share or 1] if share else []
        metafunc.parametrize("variant", known, ids=[variant.name for variant in known])


def test_a_sound_backbone_is_certified(variant: Sound) -> None:
    case = Case(
        variant.name,
        variant.factory,
        variant.backbone_id,
        variant.declared,
        recipes=variant.recipes,
    )
    ((_, outcomes),) = judge_in_forks([case], None)
    assert outcomes, "the fork died"
    unmet = {
        clause: f"{outcome.outcome}: {outcome.summary}"
        for clause, outcome in outcomes.items()
        if outcome.outcome not in HARMLESS
    }
    musts = {clause: told for clause, told in unmet.items() if catalogue()[clause].level == MUST}
    assert not musts
    assert {clause: unmet[clause] for clause in unmet.keys() - variant.shoulds} == {}
