"""Mistral 7B and Mistral NeMo 12B, base and instruct."""

from __future__ import annotations

import torch
from transformers import MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import (
    ByteLevelPurePromptBuilder,
    MetaspacePurePromptBuilder,
    MistralInstructPromptBuilder,
    MistralTekkenInstructPromptBuilder,
    MistralV3InstructPromptBuilder,
    PurePromptBuilder,
)

HEAD_WIDTH_IN_CONFIG = "4.43"
"""The first release of transformers that reads `head_dim` from Mistral's config; before, heads are
as wide as hidden size over heads, and NeMo's are narrower."""

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
    "mistral-v0.2-7b-instruct": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "mistralai/Mistral-7B-Instruct-v0.2",
    },
    "mistral-v0.3-7b-pure": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "mistralai/Mistral-7B-v0.3",
    },
    "mistral-v0.3-7b-instruct": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "mistralai/Mistral-7B-Instruct-v0.3",
    },
    "mistral-nemo-12b-pure": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "mistralai/Mistral-Nemo-Base-2407", "since": HEAD_WIDTH_IN_CONFIG,
    },
    "mistral-nemo-12b-instruct": {
        "llm_family": "mistral", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "mistralai/Mistral-Nemo-Instruct-2407", "since": HEAD_WIDTH_IN_CONFIG,
    },
}
# fmt: on


class MistralLLMBackbone(HFCausalLLMBackbone):
    """Mistral 7B (https://arxiv.org/abs/2310.06825); trained and published in bfloat16.

    From v0.2 on there is no sliding window, and theta is 1e6; v0.3 has another vocabulary, in which
    the marks of the instruct format are control tokens. NeMo
    (https://mistral.ai/news/mistral-nemo) has a byte-level vocabulary and a head width of its own.
    """

    models = MISTRAL_MODELS
    prompt_builders = (
        ("mistral-v0.3-*-pure", MetaspacePurePromptBuilder),
        ("mistral-v0.3-*-instruct", MistralV3InstructPromptBuilder),
        ("mistral-nemo-*-pure", ByteLevelPurePromptBuilder),
        ("mistral-nemo-*-instruct", MistralTekkenInstructPromptBuilder),
        ("*-pure", PurePromptBuilder),
        ("*-instruct", MistralInstructPromptBuilder),
    )
    transformer_layer_cls = MistralDecoderLayer
    half_precision_dtype = torch.bfloat16
