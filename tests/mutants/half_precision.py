"""Defects that only half precision shows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MistralForCausalLM

from backbones.llama2 import LLaMa2LLMBackbone
from backbones.mistral import MISTRAL_MODELS, MistralLLMBackbone
from tests.mutants import INSTRUCT, LLAMA_CHAT, planted


@planted("HALF-01", defects=("D38",), on=LLAMA_CHAT)
class DtypeOfTheFiles(LLaMa2LLMBackbone):
    """float16, because the hub's files say so: training was in bfloat16, whose range float16 does
    not have."""

    half_precision_dtype = torch.float16


@planted("HALF-01")
class FullPrecisionForSafety(MistralLLMBackbone):
    """float32 passes for half precision: twice the memory, and none of the kernels that hosts ask
    for."""

    half_precision_dtype = torch.float32


@planted("HALF-03", on=LLAMA_CHAT)
class MinusABillionInFloat16(LLaMa2LLMBackbone):
    """In float16 the mask is made by hand and filled with -1e9, which is -inf there: rows of
    padding are NaN by eager attention, and poison the batch."""

    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and self.llm.dtype == torch.float16:
            length = attention_mask.shape[1]
            allowed = torch.ones(length, length).tril() * attention_mask[:, None, None, :]
            attention_mask = (1.0 - allowed.half()) * -1e9
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


@planted("HALF-03", defects=("D38",))
class EmbeddingsPassThroughFloat16(MistralLLMBackbone):
    """Input embeddings are rounded to float16 on their way in: what exceeds 65,504 becomes
    infinite."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None and inputs_embeds.dtype == torch.bfloat16:
            inputs_embeds = inputs_embeds.half().to(torch.bfloat16)
        return super().forward(*args, inputs_embeds=inputs_embeds, **kwargs)


@planted("HALF-03", defects=("D35",))
class MaskedWithTheMinimumOfFloat32(MistralLLMBackbone):
    """The mask is filled with float32's minimum, in bfloat16 -inf: rows masked throughout, as on
    left padding, are NaN."""

    class EagerMistral(MistralForCausalLM):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return super().from_pretrained(*args, **{**kwargs, "attn_implementation": "eager"})

    models = {INSTRUCT: {**MISTRAL_MODELS[INSTRUCT], "llm_cls": EagerMistral}}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.llm.model.layers:
            layer.register_forward_pre_hook(_fill_with_the_minimum, with_kwargs=True)


def _fill_with_the_minimum(
    layer: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if mask is None:
        return args, kwargs
    filled = mask.float().masked_fill(mask < 0, torch.finfo(torch.float32).min)
    return args, {**kwargs, "attention_mask": filled.to(mask.dtype)}
