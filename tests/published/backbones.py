"""A class as people outside write them, for models that no recipe knows: one class, a row a model.

It imports nothing of this project. The defects below are planted in it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

MODELS = {
    "qwen25-0_5b-instruct": ("Qwen/Qwen2-0.5B-Instruct", "Qwen2ForCausalLM"),
    "pythia-70m": ("EleutherAI/pythia-70m", "GPTNeoXForCausalLM"),
    "qwen3-0_6b-instruct": ("Qwen/Qwen3-4B", "Qwen3ForCausalLM"),
    "llama3_2-1b-instruct": ("meta-llama/Llama-3.2-3B-Instruct", "LlamaForCausalLM"),
    "gemma1.1-2b-instruct": ("google/gemma-1.1-2b-it", "GemmaForCausalLM"),
    "gemma2-9b-instruct": ("google/gemma-2-9b-it", "Gemma2ForCausalLM"),
    "gemma3-270m-instruct": ("google/gemma-3-270m-it", "Gemma3ForCausalLM"),
    "phi3-mini": ("microsoft/Phi-3.5-mini-instruct", "Phi3ForCausalLM"),
    "olmo2-1b": ("allenai/OLMo-2-0425-1B", "Olmo2ForCausalLM"),
    "stablelm2-1_6b": ("stabilityai/stablelm-2-1_6b", "StableLmForCausalLM"),
}
"""Hub id and class of the model, by backbone id."""


class ChatML:
    """Every turn between `<|im_start|>` and `<|im_end|>`."""

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        self.model_family = model_family
        self.prompt = self.message("system", system_prompt) if system_prompt else ""
        self.turns = 0

    @staticmethod
    def message(role: str, text: str) -> str:
        return f"<|im_start|>{role}\n{text}<|im_end|>\n"

    def asked(self, text: str) -> str:
        return self.message("user", self.cleaned(text)) + "<|im_start|>assistant\n"

    @staticmethod
    def cleaned(text: str) -> str:
        return text.replace("<image>", "").strip()

    def add_turn(self, role: str, message: str) -> str:
        if role != ("human", "gpt")[self.turns % 2]:
            raise AssertionError(f"turn {self.turns} is not {role}'s")
        new = (
            self.asked(message)
            if role == "human"
            else f"{self.cleaned(message) or ' '}<|im_end|>\n"
        )
        before, self.prompt = self.prompt, self.prompt + new
        self.turns += 1
        return new if self.turns > 1 else before + new

    def get_prompt(self) -> str:
        return self.prompt.rstrip()

    def get_potential_prompt(self, message: str) -> str:
        return (self.prompt + self.asked(message)).rstrip()


class Plain:
    """In: a question, Out: an answer; for base models, that end in `<|endoftext|>`."""

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        self.prompt, self.turns = "", 0

    def add_turn(self, role: str, message: str) -> str:
        if role != ("human", "gpt")[self.turns % 2]:
            raise AssertionError(f"turn {self.turns} is not {role}'s")
        said = message.replace("<image>", "").strip()
        new = f"In: {said}\nOut:" if role == "human" else f" {said or ' '}<|endoftext|>"
        self.prompt += new
        self.turns += 1
        return new

    def get_prompt(self) -> str:
        return self.prompt

    def get_potential_prompt(self, message: str) -> str:
        said = message.replace("<image>", "").strip()
        return f"{self.prompt}In: {said}\nOut:"


class AnyBackbone(torch.nn.Module):
    """A decoder of the library, by backbone id."""

    models = MODELS

    def __init__(
        self,
        backbone_id: str,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = False,
    ) -> None:
        super().__init__()
        if backbone_id not in self.models:
            raise ValueError(f"no model {backbone_id!r}; there are {', '.join(self.models)}")
        self.identifier, self.inference_mode = backbone_id, inference_mode
        self.llm_max_length = llm_max_length
        hub_id, class_name = self.models[backbone_id]
        self.llm_family = class_name.removesuffix("ForCausalLM").lower()
        model_class = getattr(transformers, class_name)
        # Other attentions know no cap on scores; transformers 4 leaves it out in silence.
        chosen = {"attn_implementation": "eager"} if "Gemma2" in class_name else {}
        if use_flash_attention_2 and not inference_mode:
            chosen = {"attn_implementation": "flash_attention_2"}
        self.llm = self.load(model_class, hub_id, hf_token, chosen)
        self.llm.generation_config = GenerationConfig.from_pretrained(hub_id, token=hf_token)
        self.llm.generation_config.do_sample = False
        self.llm.config.use_cache = inference_mode
        self.tokenizer = AutoTokenizer.from_pretrained(
            hub_id, token=hf_token, model_max_length=llm_max_length, padding_side="right",
            truncation_side="right",
        )  # fmt: skip
        self.add_pad_token()
        if not inference_mode:
            # After the rows, as new ones come in a new module.
            self.llm.enable_input_require_grads()

    def load(self, model_class: Any, hub_id: str, token: str | None, chosen: dict[str, str]) -> Any:
        """The model: with its weights for training, of random ones for inference."""
        if not self.inference_mode:
            return model_class.from_pretrained(
                hub_id, token=token, torch_dtype=torch.float32, **chosen
            )
        config = AutoConfig.from_pretrained(hub_id, token=token)
        return model_class._from_config(config, torch_dtype=torch.float32, **chosen)

    def add_pad_token(self) -> None:
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        for config in (self.llm.config, self.llm.generation_config):
            config.pad_token_id = self.tokenizer.pad_token_id
        rows = self.llm.get_input_embeddings().weight.shape[0]
        self.llm.resize_token_embeddings(max(rows, len(self.tokenizer)), pad_to_multiple_of=64)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def get_fsdp_wrapping_policy(self) -> Any:
        return partial(
            transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls}
        )

    def enable_gradient_checkpointing(self) -> None:
        self.llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.llm.get_input_embeddings()(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        return self.llm(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, labels=labels,
            use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict,
        )  # fmt: skip

    @property
    def prompt_builder_fn(self) -> type:
        return ChatML if "instruct" in self.identifier else Plain

    @property
    def transformer_layer_cls(self) -> type[torch.nn.Module]:
        return type(self._layers[0])

    @property
    def _layers(self) -> torch.nn.ModuleList:
        return next(m for m in self.llm.modules() if isinstance(m, torch.nn.ModuleList))

    @property
    def half_precision_dtype(self) -> torch.dtype:
        published = ("gptneox", "llavaforconditionalgeneration")
        return torch.float16 if self.llm_family in published else torch.bfloat16

    @property
    def last_layer_finetune_modules(self) -> tuple[torch.nn.Module, ...]:
        return (
            self.llm.get_input_embeddings(), self._layers[-1], self.llm.get_output_embeddings(),
        )  # fmt: skip

    @property
    def embed_dim(self) -> int:
        return int(self.llm.config.hidden_size)

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


class PadIsEndOfText(AnyBackbone):
    """Defect: the published pad of Qwen, `<|endoftext|>`, which ends generation too."""

    def add_pad_token(self) -> None:
        rows = self.llm.get_input_embeddings().weight.shape[0]
        self.llm.resize_token_embeddings(rows, pad_to_multiple_of=64)
        self.llm.config.pad_token_id = self.tokenizer.pad_token_id


class WrapsTheMlpAlone(AnyBackbone):
    """Defect: the layer class is that of the MLP inside it."""

    @property
    def transformer_layer_cls(self) -> type[torch.nn.Module]:
        inside: torch.nn.Module = self._layers[0].get_submodule("mlp")
        return type(inside)


class EndsInTheWrongToken(AnyBackbone):
    """Defect: answers end in `<|endoftext|>`, where the model was trained on `<|im_end|>`."""

    @property
    def prompt_builder_fn(self) -> type:
        class Ended(ChatML):
            def add_turn(self, role: str, message: str) -> str:
                new = super().add_turn(role, message)
                if role == "gpt":
                    right, wrong = "<|im_end|>\n", "<|endoftext|>"
                    self.prompt = self.prompt.removesuffix(right) + wrong
                    new = new.removesuffix(right) + wrong
                return new

        return Ended
