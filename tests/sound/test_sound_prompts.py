"""No clause about prompts and texts fails a sound backbone."""

from __future__ import annotations

import pytest

from conformance.catalogue import expected_clauses
from conformance.verdict.outcomes import Outcome
from tests.forks import Case, judge_in_forks
from tests.sound.prompts import SOUND

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_backbone_is_not_failed(name: str) -> None:
    sound = SOUND[name]
    of_text = frozenset(
        clause for clause in expected_clauses(["core"]) if clause.startswith(("PAD", "PRM", "TOK"))
    )
    case = Case(
        name, sound.factory, sound.backbone_id, sound.declared, None, of_text, budget="quick"
    )
    [(_, outcomes)] = judge_in_forks([case], None)
    unmet = {
        clause: f"{found.outcome}: {found.summary}"
        for clause, found in outcomes.items()
        if found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE}
    }
    assert outcomes
    assert unmet.keys() <= sound.unmet, unmet
