"""The references are what newcomers copy: they meet every MUST and every SHOULD, on whatever version is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.target import BUILT_IN_TARGETS, resolve
from conformance.verdict.outcomes import Outcome
from tests.matrix import Case, judge_in_forks

#: SHOULDs that an installed library makes impossible, with the reason. None is known.
IMPOSSIBLE: dict[str, str] = {}


def test_every_reference_meets_every_clause() -> None:
    cases = [Case(name, resolve(name).factory, name, {}) for name in BUILT_IN_TARGETS]
    judged = {case.name: outcomes for case, outcomes in judge_in_forks(cases, None)}
    unmet = {
        f"{name} {clause}": f"{found.outcome}: {found.summary} {found.counterexample or ''}"
        for name, outcomes in judged.items()
        for clause, found in outcomes.items()
        if found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE} and clause not in IMPOSSIBLE
    }
    assert not unmet, unmet
    assert all(outcomes for outcomes in judged.values())
    assert judged.keys() == BUILT_IN_TARGETS.keys()


@pytest.mark.parametrize("name", BUILT_IN_TARGETS)
def test_ids_resolve_without_being_installed(name: str) -> None:
    assert resolve(name).backbone_id == name


def test_the_three_lists_of_ids_are_one() -> None:
    """Entry points for those who installed it, a table for a checkout, the registry for Python."""
    from backbones.registry import LLM_BACKBONES
    from conformance.toml import load_toml

    project = load_toml(Path(__file__).parents[1] / "pyproject.toml")["project"]
    assert project["entry-points"]["conformance.backbones"] == BUILT_IN_TARGETS
    classes = {name: f"{cls.__module__}:{cls.__name__}" for name, cls in LLM_BACKBONES.items()}
    assert classes == BUILT_IN_TARGETS
