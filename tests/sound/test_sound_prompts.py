"""No clause about prompts and texts fails a sound backbone."""

from __future__ import annotations

import pytest

from conformance.verdict.outcomes import Outcome
from tests.forks import Case, judge_in_forks
from tests.sound.prompts import SOUND

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_backbone_is_not_failed(name: str) -> None:
    sound = SOUND[name]
    case = Case(name, sound.factory, sound.backbone_id, sound.declared, "core")
    [(_, outcomes)] = judge_in_forks([case], None)
    unmet = {
        clause: f"{found.outcome}: {found.summary}"
        for clause, found in outcomes.items()
        if clause.startswith(("PAD", "PRM", "TOK"))
        and found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE}
    }
    assert outcomes
    assert unmet.keys() <= sound.unmet, unmet
