"""Gemma, Gemma 2 and Gemma 3 (text), base and instruct: three classes, as transformers has three
models."""

from __future__ import annotations

import torch
from transformers import GemmaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import (
    Gemma3PromptBuilder,
    GemmaPromptBuilder,
    GemmaPurePromptBuilder,
)
from backbones.transformers_releases import from_library

HAS_GEMMA2, HAS_GEMMA3 = "4.42", "4.50"
"""The first releases of transformers with Gemma 2 and with Gemma 3."""

Gemma2ForCausalLM = from_library("models.gemma2.modeling_gemma2", "Gemma2ForCausalLM")
Gemma3ForCausalLM = from_library("models.gemma3.modeling_gemma3", "Gemma3ForCausalLM")

# fmt: off
GEMMA_MODELS: dict[str, PublishedModel] = {
    "gemma-2b-instruct": {
        "llm_family": "gemma", "llm_cls": GemmaForCausalLM, "hf_hub_path": "google/gemma-2b-it",
    },
    "gemma-7b-pure": {
        "llm_family": "gemma", "llm_cls": GemmaForCausalLM, "hf_hub_path": "google/gemma-7b",
    },
}
GEMMA2_MODELS: dict[str, PublishedModel] = {
    "gemma2-2b-pure": {
        "llm_family": "gemma2", "llm_cls": Gemma2ForCausalLM, "hf_hub_path": "google/gemma-2-2b",
        "since": HAS_GEMMA2,
    },
    "gemma2-2b-instruct": {
        "llm_family": "gemma2", "llm_cls": Gemma2ForCausalLM,
        "hf_hub_path": "google/gemma-2-2b-it", "since": HAS_GEMMA2,
    },
}
GEMMA3_MODELS: dict[str, PublishedModel] = {
    "gemma3-1b-pure": {
        "llm_family": "gemma3", "llm_cls": Gemma3ForCausalLM,
        "hf_hub_path": "google/gemma-3-1b-pt", "since": HAS_GEMMA3,
    },
    "gemma3-1b-instruct": {
        "llm_family": "gemma3", "llm_cls": Gemma3ForCausalLM,
        "hf_hub_path": "google/gemma-3-1b-it", "since": HAS_GEMMA3,
    },
}
# fmt: on


class GemmaLLMBackbone(HFCausalLLMBackbone):
    """Gemma (https://arxiv.org/abs/2403.08295); trained and published in bfloat16.

    Embeddings are scaled by the square root of the hidden size: by the embedding itself since
    transformers 5, so that a host splices in what the first layer reads; by the model before, which
    then scales a host's patches too. Head and embedding are tied.
    """

    models = GEMMA_MODELS
    prompt_builders = (
        ("*-pure", GemmaPurePromptBuilder),
        ("gemma3-*-instruct", Gemma3PromptBuilder),
        ("*-instruct", GemmaPromptBuilder),
    )
    transformer_layer_cls = GemmaDecoderLayer
    half_precision_dtype = torch.bfloat16


class Gemma2LLMBackbone(GemmaLLMBackbone):
    """Gemma 2 (https://arxiv.org/abs/2408.00118): scores and logits are capped, and every other
    layer has a window. Only eager attention caps scores in every release."""

    models = GEMMA2_MODELS
    transformer_layer_cls = from_library("models.gemma2.modeling_gemma2", "Gemma2DecoderLayer")
    exact_attention = "eager"


class Gemma3LLMBackbone(GemmaLLMBackbone):
    """Gemma 3 (https://arxiv.org/abs/2503.19786), the 1B, which reads text alone: queries and keys
    are normed, and five layers with a window come to each without."""

    models = GEMMA3_MODELS
    transformer_layer_cls = from_library("models.gemma3.modeling_gemma3", "Gemma3DecoderLayer")
