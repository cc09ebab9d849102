"""Prompt builders are free in their formats: sound ones of other conventions meet every clause
about them, once declared."""

from __future__ import annotations

from typing import Any

import pytest

from backbones import prompting
from backbones.llama2 import LLaMa2LLMBackbone
from backbones.mistral import MistralLLMBackbone
from conformance.catalogue import expected_clauses
from conformance.verdict.outcomes import Outcome
from tests.forks import Case, judge_in_forks
from tests.mutants import LLAMA_CHAT, PURE


class MetaLlama2(LLaMa2LLMBackbone):
    """Meta's own encoding: every question opens with a bos, and a space stands before `</s>`."""

    class LLaMa2ChatPromptBuilder(prompting.LLaMa2ChatPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return ("" if first else "<s>") + super().human_turn(message, first)

        def gpt_turn(self, message: str) -> str:
            return f"{message} {self.terminator}" if message else super().gpt_turn(message)

    prompt_builders = (("*-chat", LLaMa2ChatPromptBuilder),)


class MarkdownPromptBuilder:
    """Nothing inherited, nothing of the references' style: turns in a list, roles by assertion."""

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        self.turns: list[str] = []

    def add_turn(self, role: str, message: str) -> str:
        assert role == ("human", "gpt")[len(self.turns) % 2]
        message = message.replace("<image>", "").strip()
        turn = f"# {message}\n\n> " if role == "human" else f"{message or ' '}</s>"
        self.turns.append(turn)
        return turn

    def get_prompt(self) -> str:
        assert self.turns, "nothing has been said"
        return "".join(self.turns).rstrip()

    def get_potential_prompt(self, message: str) -> str:
        self.add_turn("human", message)
        prompt = self.get_prompt()
        self.turns.pop()
        return prompt


class MarkdownMistral(MistralLLMBackbone):
    """The format of somebody's own base model."""

    prompt_builders = (("*-pure", MarkdownPromptBuilder),)


MARKDOWN = {"prompt_rule": [{"pattern": "*-pure", "builder": "MarkdownPromptBuilder"}]}

WITH_FIXUP = {"boundary_fixup": [28705]}
"""What Mistral's tokenizer has for a space: hosts that append it before an action declare so."""


@pytest.mark.parametrize(
    ("factory", "backbone_id", "declared"),
    [
        pytest.param(MetaLlama2, LLAMA_CHAT, {"bos_per_prompt": "per-turn"}, id="a bos a turn"),
        pytest.param(MarkdownMistral, PURE, MARKDOWN, id="another format"),
        pytest.param(MistralLLMBackbone, PURE, WITH_FIXUP, id="a fix-up before actions"),
    ],
)
def test_a_sound_builder_is_not_failed(
    factory: Any, backbone_id: str, declared: dict[str, Any]
) -> None:
    clauses = {one for one in expected_clauses(["core"]) if one.startswith(("PRM", "TOK"))}
    [(_, outcomes)] = judge_in_forks(
        [Case(factory.__name__, factory, backbone_id, declared, None, frozenset(clauses))], None
    )
    unmet = {
        clause: f"{found.outcome}: {found.summary}"
        for clause, found in outcomes.items()
        if found.outcome not in {Outcome.PASSED, Outcome.NOT_APPLICABLE}
    }
    assert outcomes.keys() == clauses
    assert not unmet
