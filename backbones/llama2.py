"""Llama 2, base and chat, and Vicuna v1.5, which was fine-tuned from it."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import (
    LLaMa2ChatPromptBuilder,
    PurePromptBuilder,
    VicunaV15ChatPromptBuilder,
)

# fmt: off
LLAMA2_MODELS: dict[str, PublishedModel] = {
    "llama2-7b-pure": {
        "llm_family": "llama2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-2-7b-hf",
    },
    "llama2-13b-pure": {
        "llm_family": "llama2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-2-13b-hf",
    },
    "llama2-7b-chat": {
        "llm_family": "llama2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-2-7b-chat-hf",
    },
    "llama2-13b-chat": {
        "llm_family": "llama2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "meta-llama/Llama-2-13b-chat-hf",
    },
    "vicuna-v15-7b": {
        "llm_family": "vicuna-v15", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "lmsys/vicuna-7b-v1.5",
    },
    "vicuna-v15-13b": {
        "llm_family": "vicuna-v15", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "lmsys/vicuna-13b-v1.5",
    },
}
# fmt: on


class LLaMa2LLMBackbone(HFCausalLLMBackbone):
    """Llama 2 (https://arxiv.org/abs/2307.09288) and Vicuna v1.5.

    The files on the hub are float16, but training was in bfloat16
    (https://huggingface.co/docs/transformers/model_doc/llama2, "Usage tips"): activations may
    exceed float16's 65,504.
    """

    models = LLAMA2_MODELS
    prompt_builders = (
        ("*-pure", PurePromptBuilder),
        ("*-chat", LLaMa2ChatPromptBuilder),
        ("vicuna-*", VicunaV15ChatPromptBuilder),
    )
    transformer_layer_cls = LlamaDecoderLayer
    half_precision_dtype = torch.bfloat16
