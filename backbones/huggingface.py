"""HFCausalLLMBackbone: what all families built on transformers' causal language models share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypedDict

import torch
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from backbones.contract import LLMBackbone
from backbones.loading import (
    BosConvention,
    LanguageModelPart,
    build_without_weights,
    choose_attention,
    load_generation_config,
    load_tokenizer,
    load_weights,
)
from backbones.prompting import PromptBuilder
from backbones.rotary import keep_rotary_float32
from backbones.transformers_releases import require_release
from backbones.vocabulary import add_pad_token, fit_vocabulary


class _Published(TypedDict):
    llm_family: str
    llm_cls: type[PreTrainedModel]
    hf_hub_path: str


class PublishedModel(_Published, total=False):
    """One row of a family's table: what an id stands for, `since` which release of transformers
    its class reads the whole of the published config, and `inside` which module of a
    vision-language checkpoint the language model is, where it is one."""

    since: str
    inside: str


class HFCausalLLMBackbone(LLMBackbone):
    """A backbone around a causal language model of transformers.

    A family is a subclass that states facts: its table `models`, its `prompt_builders`, the class
    of its decoder layer, the dtype it was trained in, and what adds its bos. This class does the
    loading, pad token, resizing, sharding and attention.
    """

    models: ClassVar[Mapping[str, PublishedModel]]
    """The ids of the family."""
    prompt_builders: ClassVar[tuple[tuple[str, type[PromptBuilder]], ...]]
    """Shell-style patterns of ids, each with the prompt format of the ids that match; the first
    match wins."""
    bos_convention: ClassVar[BosConvention] = "auto"
    """`"auto"` where the tokenizer adds the bos, `"prompt"` where the prompt builder writes it,
    `"none"` where there is none."""

    exact_attention: ClassVar[str | None] = None
    """The one attention of transformers that computes all that the family does; None where any
    does."""

    llm: Any
    """An instance of the table's `llm_cls`, a `PreTrainedModel`; Any, because its members differ by
    release."""

    def __init__(
        self,
        llm_backbone_id: str,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = True,
    ) -> None:
        """Args:
            llm_backbone_id: one of `models`.
            llm_max_length: tokens that the tokenizer truncates to, special tokens included.
            hf_token: passed to every download, for gated models; not stored.
            inference_mode: build the architecture without reading weights, for a state dict that
                is loaded later; the model returns a cache by default.
            use_flash_attention_2: use it if it is installed and there is CUDA; otherwise warn and
                do without.

        Raises:
            ValueError: unknown id; or a tokenizer at odds with the family's bos convention.
            RuntimeError: transformers is older than the id's row says.
            CheckpointError: a checkpoint that cannot be loaded whole.
        """
        super().__init__(llm_backbone_id)
        if llm_backbone_id not in self.models:
            raise ValueError(
                f"unknown LLM backbone id {llm_backbone_id!r} for {type(self).__name__}; "
                f"known ids: {', '.join(sorted(self.models))}"
            )
        published = self.models[llm_backbone_id]
        require_release(published.get("since"), llm_backbone_id)
        llm_cls, hub_path = published["llm_cls"], published["hf_hub_path"]
        self.llm_family = published["llm_family"]
        self.llm_max_length = llm_max_length
        self.inference_mode = inference_mode

        generation_config = load_generation_config(hub_path, token=hf_token)
        self.tokenizer = load_tokenizer(
            hub_path, llm_max_length, self.bos_convention, token=hf_token
        )
        add_pad_token(self.tokenizer)
        build = build_without_weights if inference_mode else load_weights
        attention = choose_attention(use_flash_attention_2, self.exact_attention)
        part = LanguageModelPart(llm_cls, hub_path, published.get("inside"), hf_token)
        self.llm = build(part, attention)
        self.llm.generation_config = generation_config
        self.llm.config.use_cache = inference_mode
        fit_vocabulary(self.llm, self.tokenizer)
        keep_rotary_float32(self.llm)
        if not inference_mode:
            # With every parameter frozen, checkpointed layers have a gradient only if their input
            # requires one. The hook sits on the embedding module, which the resize replaces, so it
            # comes last.
            self.llm.enable_input_require_grads()

    @property
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        for pattern, builder in self.prompt_builders:
            if fnmatchcase(self.identifier, pattern):
                return builder
        raise ValueError(f"No PromptBuilder defined for LLM Backbone `{self.identifier}`")

    @property
    def embed_dim(self) -> int:
        return self.llm.get_input_embeddings().embedding_dim

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def attn_implementation(self) -> str:
        return self.llm.config._attn_implementation

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        return (
            self.llm.get_input_embeddings(),
            self.llm.base_model.layers[-1],
            self.llm.get_output_embeddings(),
        )

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        return functools.partial(
            transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls}
        )

    def enable_gradient_checkpointing(self) -> None:
        self.llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    def embed_input_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        embedding = self.llm.get_input_embeddings()
        outside = (input_ids < 0) | (input_ids >= embedding.num_embeddings)
        if (
            outside.any()
        ):  # A CUDA device would report it later, elsewhere, and be unusable from then on.
            raise IndexError(
                f"token id {input_ids[outside][0].item()} is outside the "
                f"{embedding.num_embeddings} rows of the embedding: does it come from another "
                f"tokenizer?"
            )
        return embedding(input_ids)

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
        return self.llm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
