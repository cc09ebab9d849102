"""The language model of Idefics2: a Mistral inside a vision-language checkpoint."""

from __future__ import annotations

import torch
from transformers import MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import Idefics2PromptBuilder

# fmt: off
IDEFICS2_MODELS: dict[str, PublishedModel] = {
    "idefics2-8b-instruct": {
        "llm_family": "idefics2", "llm_cls": MistralForCausalLM,
        "hf_hub_path": "HuggingFaceM4/idefics2-8b", "inside": "model.text_model",
    },
}
# fmt: on


class Idefics2LLMBackbone(HFCausalLLMBackbone):
    """The decoder of Idefics2 (https://arxiv.org/abs/2405.02246): Mistral 7B v0.1 and three tokens,
    trained further on images and text; published in bfloat16.

    Its vision tower and connector are left where they are: a host has its own.
    """

    models = IDEFICS2_MODELS
    prompt_builders = (("*-instruct", Idefics2PromptBuilder),)
    transformer_layer_cls = MistralDecoderLayer
    half_precision_dtype = torch.bfloat16
