"""Defects that only a device shows, each the smallest edit a tired person would make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from backbones.mistral import MistralLLMBackbone


def elsewhere(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies on a device."""
    return tensor.device.type != "cpu"


class OtherBitsEachTime(MistralLLMBackbone):
    """A counter is kept between calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: Iterator[int] = iter(range(1, 10**6))
        self.llm.lm_head.register_forward_hook(
            lambda head, args, out: out * (1 + next(self.calls) / 64)
        )


class CoarseInBatches(MistralLLMBackbone):
    """Larger batches go to a kernel that keeps six bits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.model.layers[0].mlp.register_forward_hook(
            lambda mlp, args, out: (out * 32).round() / 32 if len(out) > 1 else out
        )


class KeepsItsCache(MistralLLMBackbone):
    """Keys and values are made and kept although nobody asks for them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **{**kwargs, "use_cache": True})
        self.last = out.past_key_values
        return out


class StoresScores(MistralLLMBackbone):
    """The first layer's attention scores are kept for a plot, in float32."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        heads, length = self.llm.config.num_attention_heads, input_ids.shape[1]
        self.scores = torch.zeros(heads, length, length, device=input_ids.device)
        return super().forward(input_ids=input_ids, **kwargs)


class FloatLogits(MistralLLMBackbone):
    """The logits are cast for the sampler's sake."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.float()
        return out


class ConstantLeftBehind(MistralLLMBackbone):
    """A scale is a tensor and no buffer, so that `.to(device)` passes it over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = torch.ones(self.embed_dim)
        self.llm.model.norm.register_forward_hook(lambda norm, args, out: out * self.scale)


class ConstantOfInference(MistralLLMBackbone):
    """The same, for inference alone."""

    def __init__(self, *args: Any, inference_mode: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, inference_mode=inference_mode, **kwargs)
        if inference_mode:
            self.scale = torch.ones(self.embed_dim, device="cpu")
            self.llm.model.norm.register_forward_hook(lambda norm, args, out: out * self.scale)


class MaskMadeOnTheCpu(MistralLLMBackbone):
    """A mask is completed by a tensor of the default device."""

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            attention_mask = attention_mask * torch.ones(attention_mask.shape, dtype=torch.long)
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class LookupMadeOnTheCpu(MistralLLMBackbone):
    """Embeddings are looked up in a copy that stays where it was made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = self.llm.get_input_embeddings().weight.detach().clone()

    def embed_input_ids(self, input_ids: Any) -> Any:
        return self.table[input_ids.cpu()]


class LogitsComeBack(MistralLLMBackbone):
    """Logits are handed out on the CPU."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits.cpu()
        return out


class StatesOfTheCpu(MistralLLMBackbone):
    """Hidden states are rounded on their way to a device."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if out.hidden_states is not None and elsewhere(out.logits):
            out.hidden_states = tuple(state.half().float() for state in out.hidden_states)
        return out


class MaskOfTheCacheMadeOnTheCpu(MistralLLMBackbone):
    """What is cached is seen through a mask of the default device."""

    def forward(
        self, *args: Any, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        if past_key_values is not None:
            attention_mask = attention_mask & torch.ones(attention_mask.shape, dtype=torch.long)
        return super().forward(
            *args, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )


class PositionsForgottenOnTheDevice(MistralLLMBackbone):
    """A fast path for devices counts positions from zero again."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and elsewhere(input_ids):
            count = torch.arange(input_ids.shape[1], device=input_ids.device)
            kwargs["position_ids"] = count[None].expand(input_ids.shape)
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, **kwargs)


class HalvesGradientsOnTheDevice(MistralLLMBackbone):
    """A scaler of gradients is undone twice on a device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

        def halve(layer: Any, args: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            if hidden.requires_grad and elsewhere(hidden):
                hidden.register_hook(lambda gradient: gradient / 2)

        self.llm.model.layers[1].register_forward_hook(halve)


class CoarseUnderAutocast(MistralLLMBackbone):
    """Under autocast on a device a kernel keeps six bits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

        def coarse(norm: Any, args: Any, out: Any) -> Any:
            if not elsewhere(out):
                return out
            on = torch.is_autocast_enabled(out.device.type)
            return (out * 16).round() / 16 if on else out

        self.llm.model.norm.register_forward_hook(coarse)


class SecondBest(LogitsProcessor):  # type: ignore[misc]
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        best = scores.argmax(-1, keepdim=True)
        return scores.scatter(1, best, float("-inf")) if elsewhere(scores) else scores


class GeneratesTheSecondBest(MistralLLMBackbone):
    """A processor that somebody tried out on a GPU is still there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate
        self.llm.generate = lambda *args, **kwargs: generate(
            *args, logits_processor=LogitsProcessorList([SecondBest()]), **kwargs
        )
