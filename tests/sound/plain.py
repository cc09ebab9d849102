"""Somebody's plain instruct Mistral, free of this project; the other modules vary it."""

from __future__ import annotations

import inspect
import warnings
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    MistralForCausalLM,
    PreTrainedModel,
    __version__,
)
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

DTYPE = "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (4, 56) else "torch_dtype"
RESIZE = (
    {"mean_resizing": False}
    if "mean_resizing" in inspect.signature(PreTrainedModel.resize_token_embeddings).parameters
    else {}
)
UNGUARDED = ("HALF-04", "FSDP-08", "CON-10", "CON-12", "EMB-12")
"""What an unmodified library class misses: rotary buffers follow a cast, new rows are drawn, the
inner `vocab_size` stays."""


class MistralInstructPromptBuilder:
    """`[INST] question [/INST] answer</s>`, turn after turn."""

    def __init__(self, model_family, system_prompt=None):
        self.model_family, self.turns = model_family, []

    def _wrap(self, role, message):
        message = message.replace("<image>", "").strip()
        return f"[INST] {message} [/INST] " if role == "human" else f"{message or ' '}</s>"

    def add_turn(self, role, message):
        if role != ("human", "gpt")[len(self.turns) % 2]:
            raise ValueError(f"it is not the turn of {role}")
        self.turns.append(self._wrap(role, message))
        return self.turns[-1]

    def get_prompt(self):
        return "".join(self.turns).rstrip()

    def get_potential_prompt(self, message):
        return ("".join(self.turns) + self._wrap("human", message)).rstrip()


class Plain(nn.Module):
    """Mistral instruct with nothing special about it."""

    table = {"mistral-v0.1-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1"}
    llm_cls, transformer_layer_cls = MistralForCausalLM, MistralDecoderLayer
    half_precision_dtype = torch.bfloat16
    prompt_builder = MistralInstructPromptBuilder
    pad_token = "<PAD>"
    attention = {}

    def __init__(
        self,
        llm_backbone_id,
        llm_max_length=2048,
        hf_token=None,
        inference_mode=False,
        use_flash_attention_2=True,
    ):
        super().__init__()
        if llm_backbone_id not in self.table:
            raise ValueError(f"{llm_backbone_id!r} is none of {', '.join(self.table)}")
        if use_flash_attention_2:
            warnings.warn("flash attention is not used here", stacklevel=2)
        self.identifier, self.inference_mode = llm_backbone_id, inference_mode
        hub = self.table[llm_backbone_id]
        self.tokenizer = self.load_tokenizer(hub, llm_max_length, hf_token)
        self.llm = self.load_llm(hub, hf_token)
        self.finish(hub, hf_token)

    def load_tokenizer(self, hub, length, token):
        tokenizer = AutoTokenizer.from_pretrained(
            hub,
            token=token,
            model_max_length=length,
            padding_side="right",
            truncation_side="right",
        )
        self.add_pad(tokenizer)
        return tokenizer

    def add_pad(self, tokenizer):
        tokenizer.add_special_tokens({"pad_token": self.pad_token})

    def load_llm(self, hub, token):
        if self.inference_mode:
            config = self.llm_cls.config_class.from_pretrained(hub, token=token)
            return self.llm_cls._from_config(config, **{DTYPE: torch.float32}, **self.attention)
        return self.llm_cls.from_pretrained(
            hub, token=token, **{DTYPE: torch.float32}, **self.attention
        )

    def finish(self, hub, token):
        llm, pad = self.llm, self.tokenizer.pad_token_id
        published = GenerationConfig.from_pretrained(hub, token=token)
        llm.generation_config = GenerationConfig(
            bos_token_id=published.bos_token_id, eos_token_id=published.eos_token_id
        )
        llm.config.use_cache = self.inference_mode
        llm.config.pad_token_id = llm.generation_config.pad_token_id = pad
        self.resize()
        if not self.inference_mode:
            llm.enable_input_require_grads()

    def resize(self):
        rows = self.llm.get_input_embeddings().num_embeddings
        self.llm.resize_token_embeddings(
            max(rows, len(self.tokenizer)), pad_to_multiple_of=64, **RESIZE
        )

    def get_tokenizer(self):
        return self.tokenizer

    @property
    def prompt_builder_fn(self):
        if self.identifier not in self.table:
            raise ValueError(f"No PromptBuilder defined for LLM Backbone `{self.identifier}`")
        return self.prompt_builder

    @property
    def embed_dim(self):
        return self.llm.config.hidden_size

    @property
    def pad_token_id(self):
        return self.tokenizer.pad_token_id

    def get_fsdp_wrapping_policy(self):
        return partial(
            transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls}
        )

    def enable_gradient_checkpointing(self):
        self.llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    def embed_input_ids(self, input_ids):
        return self.llm.get_input_embeddings()(input_ids)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
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
