"""Phi-3 mini, with four thousand positions and with 128 thousand."""

from __future__ import annotations

import torch

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import Phi3PromptBuilder
from backbones.transformers_releases import from_library

HAS_PHI3, HAS_LONGROPE = "4.41", "4.43"
"""The first releases of transformers with Phi-3, and with its scaling under the name of the
published config (`longrope`; `su` before)."""

Phi3ForCausalLM = from_library("models.phi3.modeling_phi3", "Phi3ForCausalLM")

# fmt: off
PHI3_MODELS: dict[str, PublishedModel] = {
    "phi-3-mini-4k-instruct": {
        "llm_family": "phi-3", "llm_cls": Phi3ForCausalLM,
        "hf_hub_path": "microsoft/Phi-3-mini-4k-instruct", "since": HAS_PHI3,
    },
    "phi-3-mini-128k-instruct": {
        "llm_family": "phi-3", "llm_cls": Phi3ForCausalLM,
        "hf_hub_path": "microsoft/Phi-3-mini-128k-instruct", "since": HAS_LONGROPE,
    },
}
# fmt: on


class Phi3LLMBackbone(HFCausalLLMBackbone):
    """Phi-3 (https://arxiv.org/abs/2404.14219); trained and published in bfloat16.

    Queries, keys and values share a matrix, as gate and up do. Every layer has a window. The
    tokenizer is Llama 2's with marks behind it, and adds no bos.
    """

    models = PHI3_MODELS
    prompt_builders = (("*-instruct", Phi3PromptBuilder),)
    bos_convention = "none"
    transformer_layer_cls = from_library("models.phi3.modeling_phi3", "Phi3DecoderLayer")
    half_precision_dtype = torch.bfloat16
