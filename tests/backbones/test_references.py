"""The references are what newcomers copy: they meet every MUST and every SHOULD, on whatever
version is installed."""

from __future__ import annotations

import pytest
from packaging.version import Version

from backbones.registry import LLM_BACKBONES
from backbones.transformers_releases import release
from conformance.subject.target import BUILT_IN_TARGETS, resolve
from conformance.verdict.outcomes import Outcome
from tests import ROOT
from tests.forks import Case, judge_in_forks
from tests.mutants.construction import MasterWeightsAsPublished

IMPOSSIBLE: dict[str, str] = {}
"""SHOULDs that an installed library makes impossible, with the reason. None is known."""


ONE_OF_EACH = (
    "llama2-7b-chat",
    "mistral-v0.1-7b-instruct",
    pytest.param("mistral-v0.3-7b-instruct", marks=[pytest.mark.slow, pytest.mark.release]),
    pytest.param(
        "mistral-nemo-12b-instruct",
        marks=[
            pytest.mark.slow,
            pytest.mark.release,
        ],
    ),
    "phi-2-3b",
    # Small vocabularies; those of Qwen and Llama 3 take minutes.
    "phi-3-mini-4k-instruct",
    "idefics2-8b-instruct",
    *(
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.release])
        for name in (
            "smollm2-1.7b-instruct",
            "gemma-2b-instruct",
            "gemma2-2b-instruct",
            "gemma3-1b-instruct",
            "phi-3-mini-128k-instruct",
            "qwen2.5-0.5b-instruct",
            "qwen3-0.6b-instruct",
            "llama3.2-1b-instruct",
        )
    ),
)
"""One of each class and each kind of tokenizer; tox's `certify` judges all, at the quick budget."""


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_reference_meets_every_clause(name: str, budget: str) -> None:
    since = LLM_BACKBONES[name].models[name].get("since")
    if since is not None and release < Version(since):
        pytest.skip(f"transformers has it since {since}")
    if name == "mistral-v0.1-7b-instruct":  # one at the standard budget on every generation
        budget = "standard"
    _meets_every_clause(Case(name, resolve(name).factory, name, {}, budget=budget))


@pytest.mark.slow
def test_half_precision_master_weights_are_no_defect_where_they_are_declared() -> None:
    """Before transformers 4.48 rotary tables are then rounded too, and loading that fails leaves
    bfloat16 the default dtype."""
    _meets_every_clause(
        Case(
            "declared",
            MasterWeightsAsPublished,
            "mistral-v0.1-7b-instruct",
            {"master_dtype": "bfloat16"},
            budget="quick",
        )
    )


def _meets_every_clause(case: Case) -> None:
    ((_, outcomes),) = judge_in_forks([case], None)
    unmet = {
        clause: f"{found.outcome}: {found.summary} {found.counterexample or ''}"
        for clause, found in outcomes.items()
        if found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.UPSTREAM}
        and clause not in IMPOSSIBLE
    }
    assert not unmet, unmet
    assert outcomes


@pytest.mark.parametrize("name", BUILT_IN_TARGETS)
def test_ids_resolve_without_being_installed(name: str) -> None:
    assert resolve(name).backbone_id == name


def test_the_three_lists_of_ids_are_one() -> None:
    """Entry points for those who installed it, a table for a checkout, the registry for Python."""
    from conformance.toml import load_toml

    project = load_toml(ROOT / "pyproject.toml")["project"]
    assert project["entry-points"]["conformance.backbones"] == BUILT_IN_TARGETS
    classes = {name: f"{cls.__module__}:{cls.__name__}" for name, cls in LLM_BACKBONES.items()}
    assert classes == BUILT_IN_TARGETS


@pytest.mark.parametrize(
    "name",
    [
        id_
        for id_, family in LLM_BACKBONES.items()
        if release < Version(family.models[id_].get("since", "0"))
    ],
)
def test_what_the_library_is_too_old_for_is_refused_with_the_release_that_has_it(name: str) -> None:
    """Before anything is asked of the hub."""
    since = LLM_BACKBONES[name].models[name]["since"]
    with pytest.raises(RuntimeError, match=f"{name} needs transformers {since} or later"):
        LLM_BACKBONES[name](name)
