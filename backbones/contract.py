"""LLMBackbone: what a vision-language-action model may ask of any language-model backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from backbones.prompting import PromptBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import CausalLMOutputWithPast

IMAGE_PATCHES = 256
"""Patch embeddings that a host splices in after bos by default: 16 x 16 of a 224-pixel image."""


class LLMBackbone(nn.Module, ABC):
    """A causal language model with its tokenizer, pad token, prompt format and sharding policy.

    A host projects image patches to `embed_dim`, splices them into `embed_input_ids(input_ids)` and
    calls the backbone with `inputs_embeds`. It needs to know nothing else about the language model.

    Attributes:
        identifier: the id that was requested.
        llm: the language model, a registered submodule whose output is a `CausalLMOutputWithPast`.
        tokenizer: its tokenizer; it has a separate pad token, and pads and truncates on the right.
    """

    llm: nn.Module
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, llm_backbone_id: str) -> None:
        super().__init__()
        self.identifier = llm_backbone_id

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids `embed_input_ids` and `forward` take."""
        return self.tokenizer

    @property
    @abstractmethod
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        """The prompt builder class for `identifier`; called with `(model_family,
        system_prompt=None)`.

        Raises:
            ValueError: no format is defined for `identifier`.
        """

    @property
    @abstractmethod
    def transformer_layer_cls(self) -> type[nn.Module]:
        """The class of one decoder layer: the unit of sharding and of activation checkpointing.

        `llm` holds exactly `num_hidden_layers` instances; outside them lie only embeddings, final
        norm, rotary buffers and head.
        """

    @property
    @abstractmethod
    def half_precision_dtype(self) -> torch.dtype:
        """The 16-bit dtype that the family was trained in.

        Master weights are float32; to run in half precision, use
        `backbone.to(backbone.half_precision_dtype)` or autocast. Rotary frequencies stay float32
        either way.
        """

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Width of the input embedding: the last axis of `embed_input_ids` and of
        `inputs_embeds`."""

    @property
    @abstractmethod
    def pad_token_id(self) -> int:
        """The id that pads batches on the right; never bos, eos, unk or an id that ends
        generation."""

    @property
    @abstractmethod
    def attn_implementation(self) -> str:
        """The attention in use: `"eager"`, `"sdpa"` or `"flash_attention_2"`."""

    @property
    @abstractmethod
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        """What last-layer fine-tuning trains, in order: input embedding, last decoder layer,
        head."""

    @abstractmethod
    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        """FSDP's `auto_wrap_policy`: each decoder layer becomes a unit, and so does the root."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recomputes each decoder layer in the backward pass; loss and gradients do not change.

        Works with frozen parameters too: checkpointing is non-reentrant.
        """

    def gradient_checkpointing_enable(self) -> None:
        """`enable_gradient_checkpointing`, by the name that hosts of transformers models call."""
        self.enable_gradient_checkpointing()

    @abstractmethod
    def embed_input_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """The input embeddings of `input_ids`, as `forward(inputs_embeds=…)` takes them.

        Args:
            input_ids: any shape, every id in [0, rows of the embedding).

        Returns:
            shape `(*input_ids.shape, embed_dim)`, the embedding's dtype and device. In training
            mode it is part of the autograd graph even when every parameter is frozen.

        Raises:
            IndexError: an id lies outside the embedding.
        """

    @abstractmethod
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: object | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Runs the language model: passes on every keyword unchanged and returns its output.

        Args:
            input_ids: `(batch, sequence)`; pass exactly one of this and `inputs_embeds`.
            attention_mask: `(batch, past + sequence)`, 1 on tokens, 0 on padding.
            position_ids: `(batch, sequence)`; by default they count from the cache's length.
            past_key_values: the cache that an earlier call returned.
            inputs_embeds: `(batch, sequence, embed_dim)`.
            labels: `(batch, sequence)`, ids not shifted, -100 at positions without a loss.
            use_cache: whether to return a cache; by default off in training mode, on in inference
                mode.
            output_attentions: whether to return each layer's attention weights, if the attention
                in use has them.
            output_hidden_states: whether to return every layer's hidden states.
            return_dict: False for a tuple.

        Returns:
            `logits` of shape `(batch, sequence, vocab)`; with `labels` also `loss`, the mean over
            the labels that are not -100.
        """
