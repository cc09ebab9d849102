"""Somebody else's sound Mistral backbone: a base class and a builder of its own, nothing imported
from this project."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

ACME_MODELS = {"acme-mistral-7b-instruct": {"hf_hub_path": "mistralai/Mistral-7B-Instruct-v0.1"}}


class AcmeInstructPrompt:
    """`[INST] question [/INST] answer</s>`, turn after turn."""

    def __init__(self, model_family, system_prompt=None):
        self.model_family, self._turns = model_family, []

    def add_turn(self, role, message):
        if role != ("human", "gpt")[len(self._turns) % 2]:
            raise ValueError(f"turn {len(self._turns)} is not {role!r}'s")
        self._turns.append(self._wrap(role, message))
        return self._turns[-1]

    def get_potential_prompt(self, message):
        return ("".join(self._turns) + self._wrap("human", message)).rstrip()

    def get_prompt(self):
        return "".join(self._turns).rstrip()

    @staticmethod
    def _wrap(role, message):
        message = message.replace("<image>", "").strip()
        return f"[INST] {message} [/INST] " if role == "human" else f"{message or ' '}</s>"


class AcmeBackbone(nn.Module):
    """What Acme asks of any language model."""

    def __init__(self, identifier):
        super().__init__()
        self.identifier = identifier

    def get_tokenizer(self):
        return self.tokenizer

    @property
    def embed_dim(self):
        return self.llm.config.hidden_size

    @property
    def pad_token_id(self):
        return self.tokenizer.pad_token_id

    def embed_input_ids(self, input_ids):
        return self.llm.get_input_embeddings()(input_ids)

    def forward(self, *args, **kwargs):
        return self.llm(*args, **kwargs)

    def enable_gradient_checkpointing(self):
        self.llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    def get_fsdp_wrapping_policy(self):
        return partial(
            transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls}
        )


class AcmeMistral(AcmeBackbone):
    """Mistral for Acme's robots."""

    transformer_layer_cls = MistralDecoderLayer

    def __init__(
        self,
        name,
        llm_max_length=2048,
        hf_token=None,
        inference_mode=False,
        use_flash_attention_2=True,
    ):
        super().__init__(name)
        if name not in ACME_MODELS:
            raise KeyError(f"{name!r} is none of {sorted(ACME_MODELS)}")
        self.half_precision_dtype = torch.bfloat16
        hub_id = ACME_MODELS[name]["hf_hub_path"]
        if use_flash_attention_2:
            warnings.warn(
                "flash attention is not used by this backbone; going on with sdpa", stacklevel=2
            )
        config = AutoConfig.from_pretrained(hub_id, token=hf_token)
        if inference_mode:
            self.llm = MistralForCausalLM(config).float()
        else:
            self.llm = MistralForCausalLM.from_pretrained(
                hub_id, config=config, token=hf_token, torch_dtype=torch.float32
            )
        self.llm.generation_config = GenerationConfig.from_pretrained(hub_id, token=hf_token)
        self.llm.config.use_cache = inference_mode
        self.tokenizer = AutoTokenizer.from_pretrained(
            hub_id,
            token=hf_token,
            model_max_length=llm_max_length,
            padding_side="right",
            truncation_side="right",
        )
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        self.llm.config.pad_token_id = self.llm.generation_config.pad_token_id = (
            self.tokenizer.pad_token_id
        )
        self.llm.resize_token_embeddings(len(self.tokenizer), pad_to_multiple_of=64)
        self.llm.enable_input_require_grads()

    @property
    def prompt_builder_fn(self):
        if self.identifier.endswith("-instruct"):
            return AcmeInstructPrompt
        raise ValueError(f"there is no prompt for {self.identifier}")
