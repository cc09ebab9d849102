"""Backbones that behave as the published seed classes do (OpenVLA's prismatic package), true
defects included.

Written from their behaviour, for transformers 4.40.1, and free of this project: the suite must find
their defects and no others. Published as they are, two of them cannot even be constructed; see
`AbstractMistral`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaForCausalLM,
    MistralForCausalLM,
    PhiForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.phi.modeling_phi import PhiDecoderLayer

SYSTEM_PROMPTS = {
    "prismatic": "You are a helpful language and vision assistant.",
    "openvla": "You move a robot.",
}


class SeedPrompt:
    """Turns appended to one string; the first bos is the tokenizer's."""

    bos, eos = "<s>", "</s>"

    def __init__(self, model_family, system_prompt=None):
        self.system_prompt = (
            SYSTEM_PROMPTS[model_family] if system_prompt is None else system_prompt
        )
        self.prompt, self.turn_count = "", 0

    def wrap_human(self, message):
        return f"In: {message}\nOut: "

    def wrap_gpt(self, message):
        return f"{message if message != '' else ' '}{self.eos}"

    def first_turn(self, message):
        return self.wrap_human(message)

    def add_turn(self, role, message):
        assert (role == "human") if (self.turn_count % 2 == 0) else (role == "gpt")
        message = message.replace("<image>", "").strip()
        if self.turn_count == 0:
            turn = self.first_turn(message)
        elif self.turn_count % 2 == 0:
            turn = self.wrap_human(message)
        else:
            turn = self.wrap_gpt(message)
        self.prompt += turn
        self.turn_count += 1
        return turn

    def get_potential_prompt(self, message):
        turn = self.first_turn(message) if self.turn_count == 0 else self.wrap_human(message)
        return (self.prompt + turn).removeprefix(self.bos).rstrip()

    def get_prompt(self):
        return self.prompt.removeprefix(self.bos).rstrip()


class PurePromptBuilder(SeedPrompt):
    pass


class MistralInstructPromptBuilder(SeedPrompt):
    def wrap_human(self, message):
        return f"[INST] {message} [/INST] "


class LLaMa2ChatPromptBuilder(MistralInstructPromptBuilder):
    def first_turn(self, message):
        return self.wrap_human(f"<<SYS>\n{self.system_prompt.strip()}\n<</SYS>>\n\n{message}")


class VicunaV15ChatPromptBuilder(SeedPrompt):
    def wrap_human(self, message):
        return f"USER: {message} ASSISTANT: "

    def first_turn(self, message):
        return f"{self.system_prompt.strip()} {self.wrap_human(message)}"


class PhiPromptBuilder(SeedPrompt):
    bos = eos = "<|endoftext|>"

    def wrap_human(self, message):
        return f"Input: {message}\nOutput: "

    def wrap_gpt(self, message):
        return f"{message if message != '' else ' '}\n{self.eos}"

    def first_turn(self, message):
        return f"{self.bos}{self.wrap_human(message)}"

    def get_potential_prompt(self, message):
        return (self.prompt + self.wrap_human(message)).rstrip()

    def get_prompt(self):
        return self.prompt.rstrip()


class SeedBackbone(nn.Module, ABC):
    def __init__(self, llm_backbone_id):
        super().__init__()
        self.identifier = llm_backbone_id

    def get_tokenizer(self):
        return self.tokenizer

    @abstractmethod
    def get_fsdp_wrapping_policy(self): ...

    @abstractmethod
    def enable_gradient_checkpointing(self): ...

    @property
    @abstractmethod
    def prompt_builder_fn(self): ...

    @property
    def embed_dim(self):
        return self.llm.config.hidden_size

    @property
    def pad_token_id(self):
        return self.tokenizer.pad_token_id


class SeedHFBackbone(SeedBackbone, ABC):
    half_precision_dtype = torch.bfloat16

    def __init__(
        self,
        llm_backbone_id,
        llm_max_length=2048,
        hf_token=None,
        inference_mode=False,
        use_flash_attention_2=True,
    ):
        super().__init__(llm_backbone_id)
        hub_path = self.models[llm_backbone_id]["hf_hub_path"]
        if not inference_mode:
            self.llm = self.llm_cls.from_pretrained(
                hub_path, token=hf_token, use_flash_attention_2=use_flash_attention_2,
                do_sample=False, temperature=1.0, top_p=1.0,
            )  # fmt: skip
        else:
            self.llm = self.llm_cls._from_config(
                AutoConfig.from_pretrained(hub_path, token=hf_token)
            )
        self.llm.config.use_cache = inference_mode
        if not inference_mode:
            self.llm.enable_input_require_grads()
        self.tokenizer = AutoTokenizer.from_pretrained(
            hub_path, model_max_length=llm_max_length, token=hf_token, padding_side="right"
        )
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        self.llm.config.pad_token_id = self.tokenizer.pad_token_id
        self.llm.resize_token_embeddings(len(self.tokenizer), pad_to_multiple_of=64)

    def get_fsdp_wrapping_policy(self):
        return partial(
            transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls}
        )

    def enable_gradient_checkpointing(self):
        self.llm.gradient_checkpointing_enable()

    def embed_input_ids(self, input_ids):
        return self.llm.get_input_embeddings()(input_ids)

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
        inputs_embeds=None,
        labels=None, use_cache=None, output_attentions=None, output_hidden_states=None,
        return_dict=None,
    ):  # fmt: skip
        return self.llm(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )  # fmt: skip


class SeedMistral(SeedHFBackbone):
    llm_cls, transformer_layer_cls = MistralForCausalLM, MistralDecoderLayer
    models = {
        "mistral-v0.1-7b-pure": {"hf_hub_path": "mistralai/Mistral-7B-v0.1"},
        "mistral-v0.1-7b-instruct": {"hf_hub_path": "mistralai/Mistral-7B-Instruct-v0.1"},
    }

    @property
    def prompt_builder_fn(self):
        if self.identifier.endswith("-pure"):
            return PurePromptBuilder
        if self.identifier.endswith("-instruct"):
            return MistralInstructPromptBuilder
        raise ValueError(f"No PromptBuilder defined for LLM Backbone `{self.identifier}`")


class SeedLlama2(SeedHFBackbone):
    llm_cls, transformer_layer_cls = LlamaForCausalLM, LlamaDecoderLayer
    models = {
        "llama2-7b-pure": {"hf_hub_path": "meta-llama/Llama-2-7b-hf"},
        "llama2-7b-chat": {"hf_hub_path": "meta-llama/Llama-2-7b-chat-hf"},
        "vicuna-v15-7b": {"hf_hub_path": "lmsys/vicuna-7b-v1.5"},
    }

    @property
    def prompt_builder_fn(self):
        if self.identifier.startswith("llama2-") and self.identifier.endswith("-pure"):
            return PurePromptBuilder
        if self.identifier.startswith("llama2-") and self.identifier.endswith("-chat"):
            return LLaMa2ChatPromptBuilder
        if self.identifier.startswith("vicuna"):
            return VicunaV15ChatPromptBuilder
        raise ValueError(f"No PromptBuilder defined for LLM Backbone `{self.identifier}`")


class SeedPhi(SeedHFBackbone):
    llm_cls, transformer_layer_cls = PhiForCausalLM, PhiDecoderLayer
    models = {"phi-2-3b": {"hf_hub_path": "microsoft/phi-2"}}

    @property
    def prompt_builder_fn(self):
        if self.identifier.startswith("phi-2"):
            return PhiPromptBuilder
        raise ValueError(f"No PromptBuilder defined for LLM Backbone `{self.identifier}`")


class AbstractMistral(SeedMistral):
    """As on OpenVLA's main branch: its base asks for `last_layer_finetune_modules`, and this family
    has none."""

    @property
    @abstractmethod
    def last_layer_finetune_modules(self): ...
