"""SmolLM2, base and instruct."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import EndOfTextPurePromptBuilder, SmolLM2PromptBuilder

# fmt: off
SMOLLM2_MODELS: dict[str, PublishedModel] = {
    "smollm2-135m-pure": {
        "llm_family": "smollm2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "HuggingFaceTB/SmolLM2-135M",
    },
    "smollm2-1.7b-instruct": {
        "llm_family": "smollm2", "llm_cls": LlamaForCausalLM,
        "hf_hub_path": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    },
}
# fmt: on


class SmolLM2LLMBackbone(HFCausalLLMBackbone):
    """SmolLM2 (https://arxiv.org/abs/2502.02737), Llamas; trained and published in bfloat16.

    Head and embedding are tied. There is no bos: what the instruct tokenizer calls so,
    `<|im_start|>`, opens every turn.
    """

    models = SMOLLM2_MODELS
    prompt_builders = (
        ("*-pure", EndOfTextPurePromptBuilder),
        ("*-instruct", SmolLM2PromptBuilder),
    )
    bos_convention = "none"
    transformer_layer_cls = LlamaDecoderLayer
    half_precision_dtype = torch.bfloat16
