"""The built-in backbones by id."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from backbones.gemma import Gemma2LLMBackbone, Gemma3LLMBackbone, GemmaLLMBackbone
from backbones.huggingface import HFCausalLLMBackbone
from backbones.idefics2 import Idefics2LLMBackbone
from backbones.llama2 import LLaMa2LLMBackbone
from backbones.llama3 import LLaMa3LLMBackbone
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from backbones.phi3 import Phi3LLMBackbone
from backbones.qwen3 import Qwen3LLMBackbone
from backbones.qwen25 import Qwen25LLMBackbone
from backbones.smollm2 import SmolLM2LLMBackbone

FAMILIES: tuple[type[HFCausalLLMBackbone], ...] = (
    LLaMa2LLMBackbone,
    MistralLLMBackbone,
    PhiLLMBackbone,
    Qwen25LLMBackbone,
    Qwen3LLMBackbone,
    LLaMa3LLMBackbone,
    Phi3LLMBackbone,
    SmolLM2LLMBackbone,
    GemmaLLMBackbone,
    Gemma2LLMBackbone,
    Gemma3LLMBackbone,
    Idefics2LLMBackbone,
)

LLM_BACKBONES: dict[str, type[HFCausalLLMBackbone]] = {
    id_: family for family in FAMILIES for id_ in family.models
}
"""The class of each id; the class takes the id as its first argument."""


def get_llm_backbone_and_tokenizer(
    llm_backbone_id: str, **options: Any
) -> tuple[HFCausalLLMBackbone, PreTrainedTokenizerBase]:
    """Builds the backbone of an id.

    Args:
        llm_backbone_id: one of `LLM_BACKBONES`.
        options: `llm_max_length`, `hf_token`, `inference_mode`, `use_flash_attention_2`, passed
            to the class; the rest keep the family's defaults.

    Returns:
        the backbone and its tokenizer.

    Raises:
        ValueError: unknown id; the message lists the known ones.
        CheckpointError: a checkpoint that cannot be loaded whole.
    """
    if llm_backbone_id not in LLM_BACKBONES:
        raise ValueError(
            f"unknown LLM backbone id {llm_backbone_id!r}; known ids: "
            f"{', '.join(sorted(LLM_BACKBONES))}"
        )
    backbone = LLM_BACKBONES[llm_backbone_id](llm_backbone_id, **options)
    return backbone, backbone.get_tokenizer()
