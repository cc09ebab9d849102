"""The references' constructor once more, a method a step, so that a defect can leave out, replace
or reorder one."""

from __future__ import annotations

from typing import Any

from backbones.contract import LLMBackbone
from backbones.huggingface import HFCausalLLMBackbone
from backbones.llama2 import LLaMa2LLMBackbone
from backbones.loading import (
    MASTER_DTYPE,
    LanguageModelPart,
    build_without_weights,
    choose_attention,
    load_generation_config,
    load_tokenizer,
    load_weights,
)
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from backbones.rotary import keep_rotary_float32
from backbones.transformers_releases import DTYPE
from backbones.vocabulary import add_pad_token, fit_vocabulary

__all__ = [
    "DTYPE",
    "MASTER_DTYPE",
    "Llama2InSteps",
    "MistralInSteps",
    "PhiInSteps",
    "attention",
    "same_class_but",
]


class InSteps(HFCausalLLMBackbone):
    """Constructs what the references construct; the steps are called in the order in which they
    stand here."""

    def __init__(
        self,
        llm_backbone_id: str,
        llm_max_length: int = 1792,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
    ) -> None:
        LLMBackbone.__init__(self, llm_backbone_id)
        self.look_up(llm_backbone_id)
        self.inference_mode = inference_mode
        self.tokenizer = self.published_tokenizer(llm_max_length, hf_token)
        self.add_pad()
        build = self.empty_llm if inference_mode else self.trained_llm
        self.llm = build(use_flash_attention_2, hf_token)
        self.llm.generation_config = self.generation_config(hf_token)
        self.llm.config.use_cache = inference_mode
        self.before_resize()
        self.resize()
        keep_rotary_float32(self.llm)
        self.after_resize()

    def look_up(self, llm_backbone_id: str) -> None:
        if llm_backbone_id not in self.models:
            raise ValueError(f"unknown id {llm_backbone_id!r}; known ids: {', '.join(self.models)}")
        row = self.models[llm_backbone_id]
        self.llm_cls, self.hub_path = row["llm_cls"], row["hf_hub_path"]

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        return load_tokenizer(self.hub_path, llm_max_length, self.bos_convention, token=token)

    def add_pad(self) -> None:
        add_pad_token(self.tokenizer)

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        return load_weights(self.part(token), choose_attention(flash, None))

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        return build_without_weights(self.part(token), choose_attention(flash, None))

    def part(self, token: str | None) -> LanguageModelPart:
        return LanguageModelPart(self.llm_cls, self.hub_path, None, token)

    def generation_config(self, token: str | None) -> Any:
        return load_generation_config(self.hub_path, token=token)

    def before_resize(self) -> None:
        """Nothing, in a sound backbone."""

    def resize(self) -> None:
        fit_vocabulary(self.llm, self.tokenizer)

    def after_resize(self) -> None:
        if not self.inference_mode:
            self.llm.enable_input_require_grads()


class MistralInSteps(InSteps, MistralLLMBackbone):
    pass


class Llama2InSteps(InSteps, LLaMa2LLMBackbone):
    pass


class PhiInSteps(InSteps, PhiLLMBackbone):
    pass


def attention(flash: bool) -> dict[str, str]:
    """The choice as `from_pretrained` takes it in every release; it refuses flash attention where
    there is none."""
    return {"attn_implementation": "flash_attention_2"} if flash else {}


def same_class_but(instance: Any, **members: Any) -> None:
    """Give one object other methods: a subclass that goes by its class's name, which saved files
    repeat."""
    cls = type(instance)
    instance.__class__ = type(cls.__name__, (cls,), members)
