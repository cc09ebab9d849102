"""Qwen2.5, base and instruct."""

from __future__ import annotations

import torch
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import EndOfTextPurePromptBuilder, Qwen25PromptBuilder

# fmt: off
QWEN25_MODELS: dict[str, PublishedModel] = {
    "qwen2.5-0.5b-pure": {
        "llm_family": "qwen2.5", "llm_cls": Qwen2ForCausalLM, "hf_hub_path": "Qwen/Qwen2.5-0.5B",
    },
    "qwen2.5-0.5b-instruct": {
        "llm_family": "qwen2.5", "llm_cls": Qwen2ForCausalLM,
        "hf_hub_path": "Qwen/Qwen2.5-0.5B-Instruct",
    },
    "qwen2.5-1.5b-instruct": {
        "llm_family": "qwen2.5", "llm_cls": Qwen2ForCausalLM,
        "hf_hub_path": "Qwen/Qwen2.5-1.5B-Instruct",
    },
    "qwen2.5-7b-pure": {
        "llm_family": "qwen2.5", "llm_cls": Qwen2ForCausalLM, "hf_hub_path": "Qwen/Qwen2.5-7B",
    },
    "qwen2.5-7b-instruct": {
        "llm_family": "qwen2.5", "llm_cls": Qwen2ForCausalLM,
        "hf_hub_path": "Qwen/Qwen2.5-7B-Instruct",
    },
}
# fmt: on


class Qwen25LLMBackbone(HFCausalLLMBackbone):
    """Qwen2.5 (https://arxiv.org/abs/2412.15115); trained and published in bfloat16.

    There is no bos. The model has more rows than the tokenizer has tokens, and the small sizes tie
    head and embedding.
    """

    models = QWEN25_MODELS
    prompt_builders = (
        ("*-pure", EndOfTextPurePromptBuilder),
        ("*-instruct", Qwen25PromptBuilder),
    )
    bos_convention = "none"
    transformer_layer_cls = Qwen2DecoderLayer
    half_precision_dtype = torch.bfloat16
