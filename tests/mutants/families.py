"""Defects of the newer families' own kinds: a mark, a date, a digit, a factor of theirs got wrong.

Those of their models' wiring are planted in a stranger's class (`tests/published/defects.py`).
"""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from backbones import prompting
from backbones.gemma import Gemma2LLMBackbone, Gemma3LLMBackbone, GemmaLLMBackbone
from backbones.idefics2 import Idefics2LLMBackbone
from backbones.llama3 import LLaMa3LLMBackbone
from backbones.phi3 import Phi3LLMBackbone
from backbones.qwen3 import Qwen3LLMBackbone
from backbones.qwen25 import Qwen25LLMBackbone
from backbones.smollm2 import SmolLM2LLMBackbone
from tests.mutants import planted
from tests.mutants.steps import same_class_but

QWEN25, QWEN3 = "qwen2.5-0.5b-instruct", "qwen3-0.6b-instruct"
LLAMA3, LLAMA31 = "llama3-8b-instruct", "llama3.1-8b-instruct"
GEMMA, GEMMA2, GEMMA3 = "gemma-2b-instruct", "gemma2-2b-instruct", "gemma3-1b-instruct"
PHI3 = "phi-3-mini-128k-instruct"
SMOLLM2 = "smollm2-1.7b-instruct"
IDEFICS2 = "idefics2-8b-instruct"


class _Retokenized:
    """The published tokenizer with its `tokenizer.json` edited."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        document = json.loads(self.tokenizer.backend_tokenizer.to_str())
        self.edit_tokenizer(document)
        self.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(document))


@planted("PRM-10", on=QWEN25)
class BosOfTheConfig(Qwen25LLMBackbone):
    """`bos_token_id` of the config is written first: the tokenizer knows no bos, and no training
    text began with it."""

    class Qwen25PromptBuilder(prompting.Qwen25PromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return ("<|endoftext|>" if first else "") + super().human_turn(message, first)

    prompt_builders = (("*-instruct", Qwen25PromptBuilder),)


@planted("TOK-05", on=QWEN25)
class NormalFormLost(_Retokenized, Qwen25LLMBackbone):
    """The tokenizer is made anew from its ranks alone: an accent and its letter stay two."""

    def edit_tokenizer(self, document: Any) -> None:
        document["normalizer"] = None


@planted("PRM-15", "PRM-10", on=QWEN3, since="4.51")
class ThoughtInEveryAnswer(Qwen3LLMBackbone):
    """The empty thought that the template writes before the last answer stands before each."""

    class ChatMLPromptBuilder(prompting.ChatMLPromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return f"\n<think>\n\n</think>\n\n{message}{self.terminator}"

    prompt_builders = (("*-instruct", ChatMLPromptBuilder),)


@planted("PRM-10", on=LLAMA31, since="4.43")
class DatesLeftOut(LLaMa3LLMBackbone):
    """Llama 3's format under 3.1's id: there is no system's turn, and none of its dates."""

    class Llama31PromptBuilder(prompting.Llama3PromptBuilder):
        pass

    prompt_builders = (("*-instruct", Llama31PromptBuilder),)


@planted("PRM-10", on=GEMMA)
class AssistantForModel(GemmaLLMBackbone):
    """The answer's turn is called `assistant`, as everywhere else, and not `model`."""

    class GemmaPromptBuilder(prompting.GemmaPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first).replace("turn>model", "turn>assistant")

    prompt_builders = (("*-instruct", GemmaPromptBuilder),)


@planted("FWD-01", on=GEMMA2, since="4.42", before="5.0", module="model.layers.0.self_attn")
class AttentionThatKnowsNoCap(Gemma2LLMBackbone):
    """The library chooses the attention, and transformers 4 leaves the cap on scores out in
    silence."""

    exact_attention = None


@planted("PRM-10", on=GEMMA3, since="4.50")
class SystemsTurnOfItsOwn(Gemma3LLMBackbone):
    """A system prompt has a turn of its own, which Gemma 3 was never shown."""

    class Gemma3PromptBuilder(prompting.Gemma3PromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            turn = prompting.GemmaPromptBuilder.human_turn(self, message, first=False).lstrip()
            if first and self.system_prompt:
                return f"<start_of_turn>system\n{self.system_prompt}<end_of_turn>\n{turn}"
            return turn if first else f"\n{turn}"

    prompt_builders = (("*-instruct", Gemma3PromptBuilder),)


@planted("FWD-01", "FWD-09", on=PHI3, since="4.48")
class LongFactorsAtEveryLength(Phi3LLMBackbone):
    """The set of factors for texts beyond 4,096 positions is used for all."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        rotary = next(m for m in self.llm.modules() if hasattr(m, "inv_freq"))
        config = self.llm.config
        scaling = getattr(config, "rope_parameters", None) or config.rope_scaling
        pairs = zip(scaling["short_factor"], scaling["long_factor"], strict=True)
        slower = torch.tensor([short / long for short, long in pairs])
        for name in ("inv_freq", "original_inv_freq"):
            getattr(rotary, name).mul_(slower)


@planted("FWD-15", on=PHI3, since="4.48")
class LongFactorsForGood(Phi3LLMBackbone):
    """Once a text has come past the length of the first training the factors for long ones stay."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        rotary = next(m for m in self.llm.modules() if hasattr(m, "original_inv_freq"))
        long = getattr(rotary, "long_inv_freq", None)
        if long is not None and torch.equal(rotary.inv_freq, long):
            rotary.original_inv_freq = long.clone()
        return output


@planted("TOK-02", "PRM-09", "PRM-15", on=PHI3, since="4.43")
class EndsInEndOfText(Phi3LLMBackbone):
    """Answers end in the tokenizer's eos, and not in the mark that ends a turn."""

    class Phi3PromptBuilder(prompting.Phi3PromptBuilder):
        def gpt_turn(self, message: str) -> str:
            return f"{message}<|endoftext|>\n"

    prompt_builders = (("*-instruct", Phi3PromptBuilder),)


@planted("TOK-05", on=SMOLLM2)
class DigitsTogether(_Retokenized, SmolLM2LLMBackbone):
    """GPT-2's tokenizer class: digits are joined to numbers."""

    def edit_tokenizer(self, document: Any) -> None:
        document["pre_tokenizer"] = document["pre_tokenizer"]["pretokenizers"][1]


@planted("PRM-10", on=SMOLLM2)
class MarkForBos(SmolLM2LLMBackbone):
    """What the tokenizer calls its bos is written before a dialogue, which opens with it anyway."""

    class SmolLM2PromptBuilder(prompting.SmolLM2PromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return ("<|im_start|>" if first else "") + super().human_turn(message, first)

    prompt_builders = (("*-instruct", SmolLM2PromptBuilder),)


@planted("EMB-04", on=IDEFICS2)
class HeadOfAnother(Idefics2LLMBackbone):
    """Only what stands below `model.text_model` is taken over; the head, beside it, stays as it
    was built."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        with torch.no_grad():
            self.llm.lm_head.weight.copy_(self.llm.lm_head.weight.roll(1, dims=1))


@planted("PRM-10", on=IDEFICS2)
class LineBreakLeftOut(Idefics2LLMBackbone):
    """A later question follows the answer's mark at once."""

    class Idefics2PromptBuilder(prompting.Idefics2PromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return super().human_turn(message, first=True)

    prompt_builders = (("*-instruct", Idefics2PromptBuilder),)


@planted("FWD-04", on=IDEFICS2)
class WindowOfTheClass(Idefics2LLMBackbone):
    """The decoder is built from the whole checkpoint's config, which has no window of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.llm.config.sliding_window = None


@planted("PRM-10", on=LLAMA3)
class SystemPromptAsInItsFile(LLaMa3LLMBackbone):
    """The system prompt keeps the line break that its file ends in; the template trims it."""

    class Llama3PromptBuilder(prompting.Llama3PromptBuilder):
        def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
            super().__init__(model_family, system_prompt)
            self.system_prompt = system_prompt or ""

    prompt_builders = (("*-instruct", Llama3PromptBuilder),)


@planted("PRM-10", on=SMOLLM2)
class DefaultWithoutItsComma(SmolLM2LLMBackbone):
    """The default system prompt was typed from a paper: its comma is missing."""

    class SmolLM2PromptBuilder(prompting.SmolLM2PromptBuilder):
        default_system_prompt = (
            "You are a helpful AI assistant named SmolLM trained by Hugging Face"
        )

    prompt_builders = (("*-instruct", SmolLM2PromptBuilder),)


@planted("PRM-13", on=GEMMA)
class ATurnThatGemmaNeverSaw(GemmaLLMBackbone):
    """A system prompt becomes a turn of its own, as in other families: Gemma's template refuses
    one."""

    class GemmaPromptBuilder(prompting.GemmaPromptBuilder):
        supports_system_prompt = True

        def human_turn(self, message: str, first: bool) -> str:
            system, self.system_prompt = self.system_prompt, ""
            turn = super().human_turn(message, first)
            self.system_prompt = system
            if not (first and system):
                return turn
            return f"<start_of_turn>system\n{system}<end_of_turn>\n{turn}"

    prompt_builders = (("*-instruct", GemmaPromptBuilder),)


@planted("TOK-04", on=QWEN25)
class ToolCallsAreHidden(Qwen25LLMBackbone):
    """Whatever is not plain text is called special: `<tool_call>` is gone from what people read,
    and from what parses it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        plain, first = type(self.tokenizer), self.tokenizer.vocab_size

        def decode(tokenizer: Any, token_ids: Any, *rest: Any, **options: Any) -> Any:
            if options.get("skip_special_tokens") and isinstance(token_ids, list):
                token_ids = [one for one in token_ids if isinstance(one, list) or one < first]
            return plain.decode(tokenizer, token_ids, *rest, **options)

        same_class_but(self.tokenizer, decode=decode)


@planted("EMB-08", on="phi-3-mini-4k-instruct")
class StopsOfTheConfig(Phi3LLMBackbone):
    """`save_pretrained` derives the generation config from the model's: what is served stops at one
    token of three, and writes the user's turns too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        save = self.llm.save_pretrained

        def save_valid(*arguments: Any, **options: Any) -> None:
            kept = self.llm.generation_config
            self.llm.generation_config = GenerationConfig.from_model_config(self.llm.config)
            try:
                save(*arguments, **options)
            finally:
                self.llm.generation_config = kept

        self.llm.save_pretrained = save_valid


@planted("HALF-04", on=GEMMA3, since="5.0")
class FrequenciesOfEachKindFollowTheCast(Gemma3LLMBackbone):
    """Only what is called `inv_freq` is protected from casts: where each kind of layers has its
    frequencies, under longer names, they are rounded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rotary = self.llm.model.rotary_emb
        del rotary._apply
        rotary._forward_pre_hooks.clear()
