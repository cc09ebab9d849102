"""Qwen3, base and instruct."""

from __future__ import annotations

import torch

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import ChatMLPromptBuilder, EndOfTextPurePromptBuilder
from backbones.transformers_releases import from_library

HAS_QWEN3 = "4.51"
"""The first release of transformers with Qwen3."""

Qwen3ForCausalLM = from_library("models.qwen3.modeling_qwen3", "Qwen3ForCausalLM")

# fmt: off
QWEN3_MODELS: dict[str, PublishedModel] = {
    "qwen3-0.6b-pure": {
        "llm_family": "qwen3", "llm_cls": Qwen3ForCausalLM, "hf_hub_path": "Qwen/Qwen3-0.6B-Base",
        "since": HAS_QWEN3,
    },
    "qwen3-0.6b-instruct": {
        "llm_family": "qwen3", "llm_cls": Qwen3ForCausalLM, "hf_hub_path": "Qwen/Qwen3-0.6B",
        "since": HAS_QWEN3,
    },
    "qwen3-1.7b-instruct": {
        "llm_family": "qwen3", "llm_cls": Qwen3ForCausalLM, "hf_hub_path": "Qwen/Qwen3-1.7B",
        "since": HAS_QWEN3,
    },
    "qwen3-8b-instruct": {
        "llm_family": "qwen3", "llm_cls": Qwen3ForCausalLM, "hf_hub_path": "Qwen/Qwen3-8B",
        "since": HAS_QWEN3,
    },
}
# fmt: on


class Qwen3LLMBackbone(HFCausalLLMBackbone):
    """Qwen3 (https://arxiv.org/abs/2505.09388); trained and published in bfloat16.

    Each head's queries and keys are normed, and heads have a width of their own. No bos, as in
    Qwen2.5, and more rows than tokens.
    """

    models = QWEN3_MODELS
    prompt_builders = (
        ("*-pure", EndOfTextPurePromptBuilder),
        ("*-instruct", ChatMLPromptBuilder),
    )
    bos_convention = "none"
    transformer_layer_cls = from_library("models.qwen3.modeling_qwen3", "Qwen3DecoderLayer")
    half_precision_dtype = torch.bfloat16
