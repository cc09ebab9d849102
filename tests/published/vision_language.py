"""Language models inside vision-language checkpoints, by somebody who lets go of the tower."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.published.backbones import AnyBackbone

MODELS = {
    "llava-7b": ("llava-hf/llava-1.5-7b-hf", "LlavaForConditionalGeneration"),
    "smolvlm2-500m": (
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "SmolVLMForConditionalGeneration",
    ),
}


class InsideAVisionModel(AnyBackbone):
    """The language model of a vision-language checkpoint, whose tower is let go of."""

    models = MODELS

    def load(self, model_class: Any, hub_id: str, token: str | None, chosen: dict[str, str]) -> Any:
        # Parts of a config may name a dtype of their own.
        whole = super().load(model_class, hub_id, token, chosen).float()
        config = whole.config.text_config
        config.tie_word_embeddings = whole.config.tie_word_embeddings
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(config)
        embedding = whole.get_input_embeddings()
        llm.model = next(m for m in whole.modules() if embedding in m.children())
        llm.lm_head = whole.get_output_embeddings()
        llm.generation_config = whole.generation_config
        return llm
