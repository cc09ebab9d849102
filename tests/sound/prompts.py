"""Sound prompt formats and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from backbones import prompting
from backbones.llama2 import LLaMa2LLMBackbone
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from tests.mutants import INSTRUCT, PHI, PURE


@dataclass(frozen=True)
class Sound:
    """A sound backbone, what it declares, and the SHOULDs that it does not meet."""

    factory: Callable[..., Any]
    backbone_id: str
    declared: dict[str, Any] = field(default_factory=dict)
    unmet: frozenset[str] = frozenset()


class ChatMLPromptBuilder(prompting.PromptBuilder):
    """ChatML's words around the tokenizer's own `</s>`, which closes every turn."""

    supports_system_prompt = False
    terminator = "</s>"

    def human_turn(self, message: str, first: bool) -> str:
        return f"<|user|>\n{message}{self.terminator}\n<|assistant|>\n"

    def gpt_turn(self, message: str) -> str:
        return f"{message or ' '}{self.terminator}\n"


class ClosesEveryTurn(MistralLLMBackbone):
    prompt_builders = (("*-pure", ChatMLPromptBuilder),)


class SystemTurnPromptBuilder(ChatMLPromptBuilder):
    """The same with a turn of its own for the system prompt; line breaks begin what they
    separate."""

    supports_system_prompt = True
    default_system_prompt = "You move a robot."

    def human_turn(self, message: str, first: bool) -> str:
        system = f"<|system|>\n{self.system_prompt}{self.terminator}" if first else ""
        return f"{system}\n<|user|>\n{message}{self.terminator}\n<|assistant|>"

    def gpt_turn(self, message: str) -> str:
        return f"\n{message}{self.terminator}"


class ClosesEveryTurnAndTheSystems(LLaMa2LLMBackbone):
    prompt_builders = (("*-pure", SystemTurnPromptBuilder),)


class ClosesEveryTurnInBytes(PhiLLMBackbone):
    """The same over a byte-level vocabulary, whose terminator is its bos too."""

    class PhiPromptBuilder(prompting.PromptBuilder):
        supports_system_prompt = False
        terminator = "<|endoftext|>"

        def human_turn(self, message: str, first: bool) -> str:
            lead = self.terminator if first else "\n"
            return f"{lead}<|user|>\n{message}{self.terminator}\n<|assistant|>"

        def gpt_turn(self, message: str) -> str:
            return f"\n{message}{self.terminator}"

    class ChatPhiPromptBuilder(PhiPromptBuilder):
        pass

    prompt_builders = (("phi-2*", ChatPhiPromptBuilder),)


class OfOneHost(MistralLLMBackbone):
    """Written for Prismatic; no other host asks for it."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__({"prismatic": model_family}[model_family], system_prompt)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


class OfAHostOfItsOwn(OfOneHost):
    """Written for a third host, which it declares."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__({"acme": model_family}[model_family], system_prompt)

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


class RobotTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Knows words of its own, unless it is told to know none."""

    def __init__(
        self, *args: Any, words: tuple[str, ...] = ("robot", "cup"), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.add_tokens(list(words))


class OwnTokenizer(MistralLLMBackbone):
    """The published vocabulary in a tokenizer class of one's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        published = self.tokenizer
        self.tokenizer = RobotTokenizer(
            tokenizer_object=published.backend_tokenizer,
            words=(),
            bos_token=published.bos_token,
            eos_token=published.eos_token,
            unk_token=published.unk_token,
            pad_token=published.pad_token,
            model_max_length=published.model_max_length,
            padding_side="right",
            truncation_side="right",
            model_input_names=["input_ids", "attention_mask"],
            clean_up_tokenization_spaces=False,
        )


def _rule(pattern: str, builder: str) -> dict[str, Any]:
    return {"prompt_rule": [{"pattern": pattern, "builder": builder}]}


CHATML = _rule("*-pure", "ChatMLPromptBuilder")

SOUND = {
    "every turn ends alike": Sound(
        ClosesEveryTurn, PURE, {**CHATML, "terminator_ends": "every-turn"}, frozenset({"PRM-12"})
    ),
    "every turn ends alike, undeclared": Sound(
        ClosesEveryTurn, PURE, CHATML, frozenset({"PRM-12"})
    ),
    "the system's turn too": Sound(
        ClosesEveryTurnAndTheSystems,
        "llama2-7b-pure",
        {**_rule("*-pure", "SystemTurnPromptBuilder"), "system_prompt": True},
        frozenset({"PRM-12"}),
    ),
    "a terminator that is bos": Sound(
        ClosesEveryTurnInBytes, PHI, _rule("phi-2*", "ChatPhiPromptBuilder")
    ),
    "one host": Sound(OfOneHost, INSTRUCT, {}, frozenset({"PRM-17"})),
    "a host of its own": Sound(OfAHostOfItsOwn, INSTRUCT, {"hosts": ["acme"]}),
    "a rule for every id": Sound(
        MistralLLMBackbone, INSTRUCT, _rule("*", "MistralInstructPromptBuilder")
    ),
    "a tokenizer class of one's own": Sound(OwnTokenizer, INSTRUCT),
}
"""Every sound backbone of this module by what is different about it."""
