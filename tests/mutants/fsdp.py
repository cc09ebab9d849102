"""Defects in the layer class, the wrap policy and what hosts do with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp.wrap import (
    _or_policy,
    always_wrap_policy,
    lambda_auto_wrap_policy,
    size_based_auto_wrap_policy,
    transformer_auto_wrap_policy,
)
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralMLP

from backbones.gemma import GemmaLLMBackbone
from backbones.mistral import MistralLLMBackbone
from tests.mutants import PURE, planted
from tests.mutants.steps import same_class_but


@planted("FSDP-01", defects=("D25",))
class LayerOfAnotherFamily(MistralLLMBackbone):
    """Copied from the Llama backbone: nothing in Mistral is such a layer, so nothing is sharded or
    checkpointed."""

    transformer_layer_cls = LlamaDecoderLayer


@planted("FSDP-02", defects=("D25",))
class PartOfTheLayer(MistralLLMBackbone):
    """The MLP passes for the layer, as there are equally many: attention is neither sharded nor
    checkpointed."""

    transformer_layer_cls = MistralMLP


@planted("FSDP-03", defects=("D25",))
class PolicyOfAnotherFamily(MistralLLMBackbone):
    """The policy names Llama's layer: FSDP makes one unit of the whole model, and memory runs
    out."""

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        return functools.partial(
            transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer}
        )


@planted("FSDP-03")
class PolicyWrapsEverything(MistralLLMBackbone):
    """Every module becomes a unit of its own: a gather for each norm and each projection."""

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        return always_wrap_policy


@planted("FSDP-03")
class PolicyNamesTheModelToo(MistralLLMBackbone):
    """The policy wraps the whole language model beside its layers: around `llm` alone that is the
    root, inside a host's model one unit more, whose parameters are gathered twice."""

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        return functools.partial(
            transformer_auto_wrap_policy,
            transformer_layer_cls={MistralDecoderLayer, type(self.llm)},
        )


@planted("FSDP-03", on="gemma-2b-instruct")
class NormsStayInFloat32(GemmaLLMBackbone):
    """Norms, which return what they are given, stay in float32 when the model is cast, for their
    digits: FSDP flattens no unit of two dtypes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.llm.modules():
            if type(module).__name__.endswith("RMSNorm"):
                self.keep_in_float32(module)

    @staticmethod
    def keep_in_float32(norm: nn.Module) -> None:
        apply = norm._apply
        norm._apply = lambda cast, *rest: apply(  # type: ignore[method-assign]
            lambda tensor: cast(tensor).float(), *rest
        )


@planted("FSDP-03", "FSDP-05")
class RegisteredTwice(MistralLLMBackbone):
    """The layers are registered under a second name, for quick access: a state dict holds each
    tensor twice, and a strict load of either half fails."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layers = self.llm.model.layers


@planted("FSDP-03")
class HeldInAList(MistralLLMBackbone):
    """A gain of the embeddings is kept in a plain list: no optimiser, state dict or shard has it,
    and no device follows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gains = [nn.Parameter(torch.ones(self.embed_dim))]
        self.llm.model.norm.register_forward_hook(
            lambda norm, args, hidden: hidden * self.gains[0].to(hidden.dtype)
        )


@planted("FSDP-03")
class HeadBiasInADict(MistralLLMBackbone):
    """The head has a bias that lies in a plain dict, outside `llm`: it is trained by nobody, and
    saved nowhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        bias = nn.Parameter(torch.zeros(self.llm.config.vocab_size))
        self.extras = {"head_bias": bias}
        self.llm.lm_head.register_forward_hook(
            lambda head, args, logits: logits + self.extras["head_bias"].to(logits.dtype)
        )


@planted("FSDP-04", defects=("D28",))
class HeadRemembersItsWeight(MistralLLMBackbone):
    """The head keeps hold of its first weight: sharding puts another in its place, and the two
    drift apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.lm_head.forward = functools.partial(
            functional.linear, weight=self.llm.lm_head.weight
        )


def _scaled_in_backward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    scale = 1.0 if torch._C._current_graph_task_id() == -1 else 1.5
    return MistralDecoderLayer.forward(self, hidden_states * scale, *args, **kwargs)


@planted("FSDP-05", defects=("D42",))
class RecomputedOtherwise(MistralLLMBackbone):
    """A layer that is recomputed in backward finds a scale that was changed since: gradients are of
    another model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.llm.model.layers:
            same_class_but(layer, forward=_scaled_in_backward)


class RenamedDecoderLayer(MistralDecoderLayer):
    """The layer under a name of one's own."""


@planted("FSDP-06")
class LayersRenamed(MistralLLMBackbone):
    """Layers are of a subclass that `_no_split_modules` does not list: placed by name, they are
    split over devices."""

    transformer_layer_cls = RenamedDecoderLayer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.llm.model.layers:
            layer.__class__ = RenamedDecoderLayer


@planted("CON-15", "FSDP-07", defects=("D1",))
class LastLayersNotWritten(MistralLLMBackbone):
    """`last_layer_finetune_modules` was put off: the stage fails when it begins, after the model
    has loaded."""

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        raise NotImplementedError


@planted("FSDP-07", defects=("D29",))
class HalfOfTheLastLayer(MistralLLMBackbone):
    """Only the last layer's MLP is to be trained: frozen and trainable parameters are mixed in one
    FSDP unit."""

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        embedding, layer, head = super().last_layer_finetune_modules
        return embedding, layer.mlp, head


@planted("FSDP-07")
class HeadStaysFrozen(MistralLLMBackbone):
    """The head is left out: new action tokens are embedded, but cannot be learnt as answers."""

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        return super().last_layer_finetune_modules[:2]


@planted("FSDP-07")
class LastLayerKeptFromConstruction(MistralLLMBackbone):
    """The modules are listed once: a host that adds action tokens trains an embedding and a head
    that are no longer in the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept = super().last_layer_finetune_modules

    @property
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]:
        return self._kept


@planted("FSDP-03")
class LargeModulesAreUnitsToo(MistralLLMBackbone):
    """A size-based policy stands beside the layers': at 7B every linear map of an MLP becomes a
    unit, which no probe is large enough to show."""

    def get_fsdp_wrapping_policy(self) -> Any:
        policies = [
            super().get_fsdp_wrapping_policy(),
            functools.partial(size_based_auto_wrap_policy, min_num_params=20_000_000),
        ]
        return functools.partial(_or_policy, policies=policies)


@planted("FSDP-03")
class OneUnitWhenServing(MistralLLMBackbone):
    """Built for inference it is wrapped by size, as there are no gradients to shard: layers of a
    small model are no units."""

    def get_fsdp_wrapping_policy(self) -> Any:
        if self.inference_mode:
            return functools.partial(size_based_auto_wrap_policy, min_num_params=int(1e8))
        return super().get_fsdp_wrapping_policy()


@planted("FSDP-03")
class FrozenLayersAreNoUnits(MistralLLMBackbone):
    """Only layers that are trained become units, which is what needs sharding, it says: with the
    model frozen every GPU gathers all of it."""

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        layers = [one for one in self.llm.modules() if isinstance(one, MistralDecoderLayer)]
        trained = [one for one in layers if any(p.requires_grad for p in one.parameters())]

        def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
            return recurse or any(module is one for one in trained)

        return policy


@planted("FSDP-03")
class PublishedWeightsKept(MistralLLMBackbone):
    """A copy of the published weights stays, to tell how far training has moved: no sharding
    reaches it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.published = {name: t.detach().clone() for name, t in self.llm.state_dict().items()}


@planted("FSDP-03")
class LayersListedByThePolicy(MistralLLMBackbone):
    """The policy is made once, and lists its layers: a copy, for an average of the weights say, is
    gathered whole on every GPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layers = tuple(self.llm.model.layers)

        def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
            return recurse or any(module is one for one in layers)

        self._policy = policy

    def get_fsdp_wrapping_policy(self) -> Callable[..., bool]:
        return self._policy


@planted("FSDP-03", on=PURE)
class EveryLayerOfAnyKind(MistralLLMBackbone):
    """The policy takes whatever is called a layer, a host's `LayerNorm` too: hundreds of units of a
    few kilobytes."""

    def get_fsdp_wrapping_policy(self) -> Any:
        return functools.partial(
            lambda_auto_wrap_policy,
            lambda_fn=lambda module: (
                "Layer" in type(module).__name__ and not isinstance(module, MistralLLMBackbone)
            ),
        )


@planted("FSDP-03", on=PURE)
class UnitsByIdentity(MistralLLMBackbone):
    """The policy knows the very layers of construction: a model that a host puts in their place
    becomes one unit, gathered whole."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.units = tuple(self.llm.model.layers)

    def get_fsdp_wrapping_policy(self) -> Any:
        units = self.units
        return functools.partial(
            lambda_auto_wrap_policy,
            lambda_fn=lambda module: any(module is unit for unit in units),
        )
