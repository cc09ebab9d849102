"""Mistral 7B v0.1, base and instruct."""

from __future__ import annotations

import torch
from transformers import MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import MistralInstructPromptBuilder, PurePromptBuilder

# fmt: off
MISTRAL_MODELS: dict[str, PublishedModel] = {
    "mistral-v0.1-7b-pure": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "mistralai/Mistral-7B-v0.1",
    },
    "mistral-v0.1-7b-instruct": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM, "hf_hub_path":
        "mistralai/Mistral-7B-Instruct-v0.1",
    },
}
# fmt: on


class MistralLLMBackbone(HFCausalLLMBackbone):
    """Mistral 7B v0.1 (https://arxiv.org/abs/2310.06825); trained and published in bfloat16."""

    models = MISTRAL_MODELS
    prompt_builders = (("*-pure", PurePromptBuilder), ("*-instruct", MistralInstructPromptBuilder))
    transformer_layer_cls = MistralDecoderLayer
    half_precision_dtype = torch.bfloat16
