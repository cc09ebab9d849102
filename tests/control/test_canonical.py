"""The canonical control keeps the contract itself, and excuses nothing but what it shows too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from backbones import huggingface
from backbones.llama2 import LLaMa2LLMBackbone
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from conformance.catalogue import MUST
from conformance.control import Canonical, canonical
from conformance.verdict.outcomes import Outcome
from tests.forks import Case, judge_in_forks

pytestmark = pytest.mark.slow

FAMILIES: dict[str, type[huggingface.HFCausalLLMBackbone]] = {
    "mistral-v0.1-7b-instruct": MistralLLMBackbone,
    "llama2-7b-chat": LLaMa2LLMBackbone,
    "phi-2-3b": PhiLLMBackbone,
}


def with_prompts(identifier: str) -> Callable[..., Any]:
    """The canonical control with the prompts of the reference: it has none of its own."""
    family = FAMILIES[identifier]

    class Prompted(Canonical):
        prompt_builder_fn = family.prompt_builder_fn
        prompt_builders = family.prompt_builders

    return canonical(
        family.models[identifier]["hf_hub_path"], identifier, master=torch.float32,
        half=torch.bfloat16, kind=Prompted,
    )  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every family, or one where defects are sampled."""
    if "identifier" in metafunc.fixturenames:
        share = {"full": 3, "own": 1, "sample": 1, "none": 0}[
            metafunc.config.getoption("--mutants")
        ]
        metafunc.parametrize("identifier", list(FAMILIES)[:share])


def test_the_control_is_certified(identifier: str, budget: str) -> None:
    case = Case(identifier, with_prompts(identifier), identifier, {}, budget=budget)
    ((_, outcomes),) = judge_in_forks([case], None)
    unmet = {
        clause: outcome.summary
        for clause, outcome in outcomes.items()
        if outcome.level == MUST
        and outcome.outcome not in (Outcome.PASSED, Outcome.UPSTREAM, Outcome.NOT_APPLICABLE)
    }
    assert not unmet


class WithoutWindow(MistralLLMBackbone):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.llm.config.sliding_window = None


def test_another_observation_excuses_nobody() -> None:
    case = Case("WithoutWindow", WithoutWindow, "mistral-v0.1-7b-instruct", {}, profile="numerics")
    ((_, outcomes),) = judge_in_forks([case], None)
    assert outcomes["FWD-04"].outcome is Outcome.FAILED or outcomes["FWD-01"].outcome is (
        Outcome.FAILED
    )
