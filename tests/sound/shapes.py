"""Sound backbones of other shapes: outputs, signatures, composition, factories, lazy building."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import torch
from torch import nn
from transformers import PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from backbones.prompting import PhiPromptBuilder
from tests.sound import sound
from tests.sound.plain import UNGUARDED, Plain


@dataclass
class Result:
    """What Acme returns from any model."""

    logits: torch.Tensor
    loss: Optional[torch.Tensor] = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@sound(*UNGUARDED)
class OwnOutput(Plain):
    """Returns a class of its own."""

    def forward(self, *args, return_dict=None, **kwargs):
        if return_dict is False:
            return super().forward(*args, return_dict=False, **kwargs)
        out = super().forward(*args, **kwargs)
        return Result(out.logits, out.loss, out.past_key_values, out.hidden_states, out.attentions)


@sound(*UNGUARDED)
class TakesAnything(Plain):
    """Its forward takes what the model takes."""

    def forward(self, *args, **kwargs):
        return self.llm(*args, **kwargs)


@sound(*UNGUARDED)
class PassesByPosition(Plain):
    """Its forward hands over by position what every release has in the same place."""

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
        inputs_embeds=None, labels=None, use_cache=None, output_attentions=None,
        output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        return self.llm(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels,
            use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict,
        )  # fmt: skip


@sound(*UNGUARDED)
class AnotherPad(Plain):
    """The pad token goes by another string."""

    pad_token = "[PAD]"


@sound(*UNGUARDED)
class OwnTokenizerClass(Plain):
    """The tokenizer is of a subclass, with a helper for robots."""

    def load_tokenizer(self, hub, length, token):
        tokenizer = super().load_tokenizer(hub, length, token)
        base = type(tokenizer)

        class RobotTokenizer(base):
            def encode_instruction(self, text):
                return self.encode(f"What should the robot do to {text}?")

        RobotTokenizer.__name__ = base.__name__
        tokenizer.__class__ = RobotTokenizer
        return tokenizer


@sound(*UNGUARDED)
class Lazy(Plain):
    """The model is loaded when it is first asked for."""

    def __init__(self, *args, **kwargs):
        self.__dict__["_pending"] = None
        super().__init__(*args, **kwargs)

    def load_llm(self, hub, token):
        self.__dict__["_hub"] = hub
        self.__dict__["_pending"] = partial(super().load_llm, hub, token)
        return self.__dict__["_pending"]

    def __setattr__(self, name, value):
        if name == "llm" and callable(value) and not isinstance(value, nn.Module):
            return
        super().__setattr__(name, value)

    def finish(self, hub, token):
        self.__dict__["_finish"] = partial(super().finish, hub, token)

    def __getattr__(self, name):
        if name == "llm" and self.__dict__.get("_pending") is not None:
            build, finish = self.__dict__["_pending"], self.__dict__["_finish"]
            # They hold the token.
            self.__dict__["_pending"] = self.__dict__["_finish"] = None
            self.llm = build()
            finish()
        return super().__getattr__(name)


@sound(*UNGUARDED)
class Reentrant(Plain):
    """Checkpoints as the library did by default before 5."""

    def enable_gradient_checkpointing(self):
        self.llm.gradient_checkpointing_enable({"use_reentrant": True})


@sound(*UNGUARDED)
class InModuleDict(Plain):
    """Everything that has weights lies in one module dict."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def __setattr__(self, name, value):
        if name == "llm":
            name, value = "parts", nn.ModuleDict({"llm": value})
        super().__setattr__(name, value)

    @property
    def llm(self):
        return self.parts["llm"]


class Composed(nn.Module):
    """Holds a language model and passes on what it does not know."""

    def __init__(self, llm, **members):
        super().__init__()
        self.llm = llm
        self.__dict__.update(members)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("llm"), name)

    def get_tokenizer(self):
        return self.tokenizer

    def embed_input_ids(self, input_ids):
        return self.llm.get_input_embeddings()(input_ids)

    def get_fsdp_wrapping_policy(self):
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        return ModuleWrapPolicy({self.transformer_layer_cls})

    def enable_gradient_checkpointing(self):
        self.llm.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, **inputs):
        return self.llm(**inputs)


@sound(*UNGUARDED)
def composed(*args, **kwargs):
    """By composition: the object holds a model and passes on what it lacks."""
    made = Plain(*args, **kwargs)
    return Composed(
        made.llm,
        tokenizer=made.tokenizer,
        identifier=made.identifier,
        prompt_builder_fn=made.prompt_builder_fn,
        transformer_layer_cls=made.transformer_layer_cls,
        half_precision_dtype=made.half_precision_dtype,
        embed_dim=made.embed_dim,
        pad_token_id=made.pad_token_id,
    )


@sound(*UNGUARDED)
def factory_of_two(*args, **kwargs):
    """A factory that returns the backbone and its tokenizer."""
    backbone = TakesAnything(*args, **kwargs)
    return backbone, backbone.get_tokenizer()


@sound(*UNGUARDED)
class LooksUpFirst(Plain):
    """Its forward looks embeddings up itself, outside of the model's."""

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        return self.llm(inputs_embeds=inputs_embeds, **kwargs)


@sound(*UNGUARDED)
class CheckpointedByTorch(Plain):
    """Checkpoints with torch's own wrapper, which adds to the names of parameters."""

    def enable_gradient_checkpointing(self):
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
            CheckpointImpl,
            apply_activation_checkpointing,
            checkpoint_wrapper,
        )

        apply_activation_checkpointing(
            self.llm,
            checkpoint_wrapper_fn=partial(
                checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT
            ),
            check_fn=lambda module: isinstance(module, self.transformer_layer_cls),
        )


@sound(*UNGUARDED, "PRM-18")
class BuildsByMethod(Plain):
    """What makes prompt builders is a function, as its name says: a method here."""

    def prompt_builder_fn(self, model_family, system_prompt=None):
        if self.identifier not in self.table:
            raise ValueError(f"No PromptBuilder defined for LLM Backbone {self.identifier!r}")
        return self.prompt_builder(model_family, system_prompt)


@sound(*UNGUARDED, "TOK-06", on="phi-2-3b")
class OneBuilderForOneFormat(Plain):
    """All ids of the family have one format: the builder is a constant. The constructor refuses
    ids of other families."""

    table = {"phi-2-3b": "microsoft/phi-2"}
    llm_cls, transformer_layer_cls = PhiForCausalLM, PhiDecoderLayer
    prompt_builder_fn = PhiPromptBuilder


class LayersByName:
    """A wrap policy that goes by what the model calls its layers' class."""

    def __init__(self, names):
        self.names = frozenset(names)

    def __call__(self, module, recurse, nonwrapped_numel=0, **_):
        return recurse or type(module).__name__ in self.names


@sound(*UNGUARDED)
class WrapsByName(Plain):
    """The layers' class is read off the layers, whatever stands there at the moment."""

    @property
    def transformer_layer_cls(self):
        return type(self.llm.model.layers[0])

    def get_fsdp_wrapping_policy(self):
        return LayersByName(self.llm._no_split_modules)


@sound(*UNGUARDED)
class FrozenWhenServing(Plain):
    """Built for inference it is frozen, and in eval()."""

    def finish(self, hub, token):
        super().finish(hub, token)
        if self.inference_mode:
            self.requires_grad_(False).eval()
