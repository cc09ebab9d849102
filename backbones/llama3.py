"""Llama 3, 3.1 and 3.2 (text), base and instruct."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import (
    Llama3PromptBuilder,
    Llama3PurePromptBuilder,
    Llama31PromptBuilder,
)

HAS_LLAMA3_SCALING = "4.43"
"""The first release of transformers that computes `"rope_type": "llama3"`; before, such a config is
refused or its scaling left out."""

# fmt: off
LLAMA3_MODELS: dict[str, PublishedModel] = {
    "llama3-8b-pure": {
        "llm_family": "llama3", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Meta-Llama-3-8B",
    },
    "llama3-8b-instruct": {
        "llm_family": "llama3", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    },
    "llama3.1-8b-pure": {
        "llm_family": "llama3.1", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-3.1-8B", "since": HAS_LLAMA3_SCALING,
    },
    "llama3.1-8b-instruct": {
        "llm_family": "llama3.1", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-3.1-8B-Instruct", "since": HAS_LLAMA3_SCALING,
    },
    "llama3.2-1b-pure": {
        "llm_family": "llama3.2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-3.2-1B", "since": HAS_LLAMA3_SCALING,
    },
    "llama3.2-1b-instruct": {
        "llm_family": "llama3.2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-3.2-1B-Instruct", "since": HAS_LLAMA3_SCALING,
    },
}
# fmt: on


class LLaMa3LLMBackbone(HFCausalLLMBackbone):
    """Llama 3 (https://arxiv.org/abs/2407.21783); trained and published in bfloat16.

    From 3.1 on the rotary frequencies are stretched, and the 1B of 3.2 ties head and embedding.
    """

    models = LLAMA3_MODELS
    prompt_builders = (
        ("*-pure", Llama3PurePromptBuilder),
        ("llama3-*-instruct", Llama3PromptBuilder),
        ("*-instruct", Llama31PromptBuilder),
    )
    transformer_layer_cls = LlamaDecoderLayer
    half_precision_dtype = torch.bfloat16
