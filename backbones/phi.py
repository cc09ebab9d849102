"""Phi-2."""

from __future__ import annotations

import torch
from transformers import PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from backbones.contract import IMAGE_PATCHES
from backbones.huggingface import HFCausalLLMBackbone, PublishedModel
from backbones.prompting import PhiPromptBuilder

# fmt: off
PHI_MODELS: dict[str, PublishedModel] = {
    "phi-2-3b": {"llm_family": "phi", "llm_cls": PhiForCausalLM, "hf_hub_path": "microsoft/phi-2"},
}
# fmt: on

PHI_POSITIONS = 2048
"""Positions that Phi-2 was trained on (`max_position_embeddings` of its config)."""


class PhiLLMBackbone(HFCausalLLMBackbone):
    """Phi-2 (https://huggingface.co/microsoft/phi-2), 2.7 billion parameters.

    Its tokenizer adds no bos; the prompt builder writes `<|endoftext|>`, which is eos as well.
    Published in float16; trained with bfloat16's range, which its attention needs: in float16 it
    overflows (https://github.com/huggingface/transformers/pull/28163).
    """

    models = PHI_MODELS
    prompt_builders = (("phi-2*", PhiPromptBuilder),)
    bos_convention = "prompt"
    transformer_layer_cls = PhiDecoderLayer
    half_precision_dtype = torch.bfloat16

    def __init__(
        self,
        llm_backbone_id: str,
        llm_max_length: int = PHI_POSITIONS - IMAGE_PATCHES,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
    ) -> None:
        """Like the base class; by default the text leaves room for an image in the 2,048
        positions."""
        super().__init__(
            llm_backbone_id, llm_max_length, hf_token, inference_mode, use_flash_attention_2
        )
