"""Defects of families that publish again under the same class: one version's ways under another's
id."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from backbones import prompting
from backbones.mistral import MistralLLMBackbone
from backbones.transformers_releases import ZeroRandomFills
from tests.mutants import planted
from tests.mutants.numerics import EditedMistral
from tests.mutants.steps import DTYPE, MASTER_DTYPE, MistralInSteps, attention

V2_INSTRUCT = "mistral-v0.2-7b-instruct"
V3_INSTRUCT = "mistral-v0.3-7b-instruct"
V3_PURE = "mistral-v0.3-7b-pure"
NEMO_INSTRUCT = "mistral-nemo-12b-instruct"
NEMO_PURE = "mistral-nemo-12b-pure"


@planted("PRM-01", "PRM-12", on=V3_INSTRUCT)
class OneFormatForEveryVersion(MistralLLMBackbone):
    """The suffix alone chooses the builder: v0.3 is asked in the format of v0.1."""

    prompt_builders = (
        ("*-pure", prompting.PurePromptBuilder),
        ("*-instruct", prompting.MistralInstructPromptBuilder),
    )


@planted("PRM-10", on=V3_INSTRUCT)
class SpaceBeforeTheClosingMark(MistralLLMBackbone):
    """`[INST] … [/INST]` with a space on both sides of the question, as v0.1 has it and the first
    template of v0.3 had: one more token before the closing mark."""

    class MistralV3InstructPromptBuilder(prompting.MistralV3InstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return f"[INST] {message} [/INST]"

    prompt_builders = (("*-instruct", MistralV3InstructPromptBuilder),)


@planted("PRM-10", on=V2_INSTRUCT)
class MarksWithoutASpace(MistralLLMBackbone):
    """The third version's format under the second's id, whose marks are text: `?[/` is joined."""

    class MistralInstructPromptBuilder(prompting.MistralInstructPromptBuilder):
        def human_turn(self, message: str, first: bool) -> str:
            return f"[INST] {message}[/INST] "

    prompt_builders = (("*-instruct", MistralInstructPromptBuilder),)


@planted("PRM-10", "PRM-11", on=V3_PURE)
class SeedsBuilderForANewerTokenizer(MistralLLMBackbone):
    """The seed's own text, for a tokenizer that puts a `▁` before the text alone: whole dialogues
    lack the `▁` that turn-by-turn encoding puts before later questions."""

    class MetaspacePurePromptBuilder(prompting.PurePromptBuilder):
        pass

    prompt_builders = (("*-pure", MetaspacePurePromptBuilder),)


@planted("TOK-05", "TOK-04", "PAD-08", on=V3_INSTRUCT)
class PrefixOfTheFirstVersion(MistralInSteps):
    """The tokenizer is converted anew with `legacy=True`: a `▁` goes before each part of a text,
    whatever it begins with."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        tokenizer = super().published_tokenizer(llm_max_length, token)
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        prepend = {"type": "Prepend", "prepend": "▁"}
        document["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
        document["pre_tokenizer"] = None
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(document))
        return tokenizer


@planted("FWD-04", on=V2_INSTRUCT)
class WindowOfTheFirstVersion(EditedMistral):
    """`"sliding_window": null` is dropped as if it were unset, and a window stands where the
    published config says that there is none."""

    def edit(self, llm: Any) -> None:
        llm.config.sliding_window = 16


@planted("PRM-10", on=NEMO_INSTRUCT, since="4.43")
class SpacesOfTheThirdVersion(MistralLLMBackbone):
    """The third version's format as SentencePiece wants it, a space before question and answer, for
    a byte-level vocabulary in which a space is part of the word."""

    class MistralTekkenInstructPromptBuilder(prompting.MistralV3InstructPromptBuilder):
        pass

    prompt_builders = (("*-instruct", MistralTekkenInstructPromptBuilder),)


@planted("TOK-05", "PAD-08", on=NEMO_PURE, since="4.43")
class SplitsAsGpt2Does(MistralInSteps):
    """The split pattern is lost in a conversion, and GPT-2's steps in: numbers are joined, and case
    breaks no word."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        tokenizer = super().published_tokenizer(llm_max_length, token)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=True
        )
        return tokenizer


@planted("CON-02", on=NEMO_INSTRUCT, since="4.43")
class HeadWidthDerived(MistralInSteps):
    """Heads are as wide as hidden size over heads when the model is built from its config: 160
    where 128 are published, and no state dict fits."""

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        config = self.llm_cls.config_class.from_pretrained(self.hub_path, token=token)
        config.head_dim = config.hidden_size // config.num_attention_heads
        with ZeroRandomFills():
            return self.llm_cls._from_config(config, **{DTYPE: MASTER_DTYPE}, **attention(flash))


@planted("FWD-01", on=NEMO_INSTRUCT, since="4.48", module="model.layers.0.self_attn")
class ScaleOfTheDerivedWidth(EditedMistral):
    """The scores are divided by the root of hidden size over heads: the weights fit, and every
    score is a tenth too small."""

    def edit(self, llm: Any) -> None:
        width = llm.config.hidden_size // llm.config.num_attention_heads
        for attention_layer in (layer.self_attn for layer in llm.model.layers):
            attention_layer.scaling = width**-0.5
