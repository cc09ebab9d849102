"""Somebody else's policies, in the shapes of published ones; nothing imported from this project.

`VlaPolicy` holds a `.vlm` and a `.processor.tokenizer`, as LeRobot's SmolVLA does
(https://github.com/huggingface/lerobot, `smolvla/modeling_smolvla.py`); `EagleTrunk` cuts its
`.language_model` off at a layer once it is loaded, as GR00T's does
(https://github.com/NVIDIA/Isaac-GR00T, `eagle_backbone.py`); `TwoArguments` takes two of the five
arguments. The defects below are planted in them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def load(model_id: str, token: str | None = None) -> Any:
    llm = AutoModelForCausalLM.from_pretrained(model_id, token=token, torch_dtype=torch.float32)
    llm.generation_config = GenerationConfig.from_pretrained(model_id, token=token)
    llm.generation_config.do_sample = False
    llm.config.use_cache = False
    return llm


def load_tokenizer(model_id: str, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(
        model_id, padding_side="right", truncation_side="right", **options
    )


def add_pad(llm: Any, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    for config in (llm.config, llm.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    rows = llm.get_input_embeddings().weight.shape[0]
    llm.resize_token_embeddings(max(rows, len(tokenizer)), pad_to_multiple_of=64)
    llm.enable_input_require_grads()


class VisionTower(nn.Module):
    """Stands for a vision encoder: patches to features, in half precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(48, width, dtype=torch.bfloat16)


class Vlm(nn.Module):
    """A tower beside a language model."""

    def __init__(self, language: Any) -> None:
        super().__init__()
        self.language = language
        self.vision_model = VisionTower(language.config.hidden_size)


class VlaPolicy(nn.Module):
    """Images and an instruction in, actions out."""

    def __init__(self, model_id: str, token: str | None = None, chunk_size: int = 4) -> None:
        super().__init__()
        self.vlm = Vlm(load(model_id, token))
        self.processor = SimpleNamespace(tokenizer=load_tokenizer(model_id, token=token))
        self.action_head = nn.Linear(self.vlm.language.config.hidden_size, 7 * chunk_size)
        self.prepare()

    def prepare(self) -> None:
        add_pad(self.vlm.language, self.processor.tokenizer)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        features = self.vlm.language.model(input_ids=batch["tokens"]).last_hidden_state
        actions: torch.Tensor = self.action_head(features[:, -1])
        return actions


class EagleTrunk(nn.Module):
    """A language model of which the first layers alone are used."""

    def __init__(self, model_id: str, select_layer: int = 12) -> None:
        super().__init__()
        self.language_model = load(model_id)
        self.tokenizer = load_tokenizer(model_id)
        add_pad(self.language_model, self.tokenizer)
        while len(self.language_model.model.layers) > select_layer:
            self.language_model.model.layers.pop(-1)


class TwoArguments(nn.Module):
    """A checkpoint and a length: nothing else is asked of the caller."""

    def __init__(self, checkpoint: str, max_tokens: int = 2048) -> None:
        super().__init__()
        self.llm = load(checkpoint)
        self.tokenizer = load_tokenizer(checkpoint, model_max_length=max_tokens)
        add_pad(self.llm, self.tokenizer)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def embed_input_ids(self, input_ids: torch.Tensor) -> Any:
        return self.llm.get_input_embeddings()(input_ids)

    def forward(self, **inputs: Any) -> Any:
        return self.llm(**inputs)

    @property
    def transformer_layer_cls(self) -> type[nn.Module]:
        return type(self.llm.model.layers[0])

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


class PadsWithTheEnd(VlaPolicy):
    """Defect: the pad is the token that ends generation."""

    def prepare(self) -> None:
        super().prepare()
        self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token


class ChangesWeights(EagleTrunk):
    """Defect: a weight is scaled after loading."""

    def __init__(self, model_id: str, select_layer: int = 12) -> None:
        super().__init__(model_id, select_layer)
        with torch.no_grad():
            self.language_model.model.layers[0].self_attn.q_proj.weight.mul_(1.01)


class WrapsTheMlp(TwoArguments):
    """Defect: the layer class is that of the MLP inside it."""

    @property
    def transformer_layer_cls(self) -> type[nn.Module]:
        return type(self.llm.model.layers[0].mlp)


def make_policy(model_id: str) -> tuple[VlaPolicy, None]:
    """A factory under another name than the class's."""
    return VlaPolicy(model_id), None
