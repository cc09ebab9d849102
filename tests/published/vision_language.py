"""Language models inside vision-language checkpoints, by somebody who lets go of the tower, and by
somebody who keeps it."""

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


WHOLE = {
    "qwen25-vl-3b-instruct": (
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen2_5_VLForConditionalGeneration",
    ),
    "qwen3-vl-4b-instruct": ("Qwen/Qwen3-VL-4B-Instruct", "Qwen3VLForConditionalGeneration"),
}
OUTSIDE = {"outside": ["llm.model.visual"]}
"""The tower beside the language model, as a `[subject]` table declares it."""


class AWholeVisionModel(AnyBackbone):
    """A vision-language model as it is, whose decoder has no class of its own in the library."""

    models = WHOLE

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.llm.config.text_config.use_cache = self.inference_mode

    def load(self, model_class: Any, hub_id: str, token: str | None, chosen: dict[str, str]) -> Any:
        # Parts of a config may name a dtype of their own.
        return super().load(model_class, hub_id, token, chosen).float()

    def add_pad_token(self) -> None:
        super().add_pad_token()
        self.llm.config.text_config.pad_token_id = self.tokenizer.pad_token_id

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.llm.model.rope_deltas = None  # the position offset of the last text
        return super().forward(*arguments, **options)

    @property
    def _layers(self) -> torch.nn.ModuleList:
        layers: torch.nn.ModuleList = self.llm.model.language_model.layers
        return layers

    @property
    def embed_dim(self) -> int:
        return int(self.llm.config.text_config.hidden_size)
