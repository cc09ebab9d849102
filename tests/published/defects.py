"""Defects of each family's own kind, planted in a stranger's class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tests.published.backbones import AnyBackbone
from tests.published.vision_language import AWholeVisionModel


def _layers(backbone: Any) -> Any:
    return next(m for m in backbone.llm.modules() if isinstance(m, torch.nn.ModuleList))


def _rotary(backbone: Any) -> Any:
    return next(m for m in backbone.llm.modules() if hasattr(m, "inv_freq"))


def no_rope_scaling(backbone: Any) -> None:
    """Llama 3.2's frequencies are those of Llama 3: `rope_scaling` is lost."""
    rotary, config = _rotary(backbone), backbone.llm.config
    rope = getattr(config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta") or config.rope_theta
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    for name in ("inv_freq", "original_inv_freq"):
        if hasattr(rotary, name):
            setattr(rotary, name, 1.0 / theta**steps)


def no_final_softcap(backbone: Any) -> None:
    """Gemma 2 returns its logits as the head has them."""
    backbone.llm.config.final_logit_softcapping = None


def no_attention_softcap(backbone: Any) -> None:
    """Gemma 2's scores are not capped."""
    for layer in _layers(backbone):
        layer.self_attn.attn_logit_softcapping = None


def norms_without_their_offset(backbone: Any) -> None:
    """Gemma's norms multiply by their weight rather than by one more than it."""
    for module in backbone.llm.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: m._norm(x.float()).type_as(x) * m.weight


def no_key_norm(backbone: Any) -> None:
    """Qwen3's keys are not normalised."""
    for layer in _layers(backbone):
        layer.self_attn.k_norm.forward = lambda x: x


def no_query_bias(backbone: Any) -> None:
    """Qwen2's query biases count for nothing."""
    for layer in _layers(backbone):
        q = layer.self_attn.q_proj
        q.forward = lambda x, q=q: functional.linear(x, q.weight)


def no_window(backbone: Any) -> None:
    """Every layer sees the whole text."""
    config = backbone.llm.config
    if not getattr(config, "layer_types", None):
        config.sliding_window = None
        return
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    for layer in _layers(backbone):
        layer.attention_type = layer.self_attn.layer_type = "full_attention"
        layer.self_attn.sliding_window, layer.self_attn.is_sliding = None, False


def residuals_in_turn(backbone: Any) -> None:
    """GPT-NeoX's MLP follows its attention rather than standing beside it."""
    for layer in _layers(backbone):
        layer.use_parallel_residual = False


def gate_and_up_exchanged(backbone: Any) -> None:
    """Phi-3's fused projection is split the other way round."""
    for layer in _layers(backbone):
        fused = layer.mlp.gate_up_proj
        fused.forward = lambda x, f=fused: torch.cat(
            functional.linear(x, f.weight).chunk(2, dim=-1)[::-1], dim=-1
        )


def _normalised_first(inner: Any, norm: Any, hidden: Any, *others: Any, **named: Any) -> Any:
    return inner(type(norm).forward(norm, hidden), *others, **named)


def norm_before_attention(backbone: Any) -> None:
    """OLMo 2's norm stands where Llama has it, before the attention."""
    for layer in _layers(backbone):
        attention, norm = layer.self_attn, layer.post_attention_layernorm
        inner = attention.forward

        def forward(
            hidden_states: Any, *a: Any, inner: Any = inner, norm: Any = norm, **k: Any
        ) -> Any:
            return inner(type(norm).forward(norm, hidden_states), *a, **k)

        attention.forward = forward
        norm.forward = lambda x: x


def _planted(change: Callable[[Any], None]) -> type[AnyBackbone]:
    class WithDefect(AnyBackbone):
        __doc__ = change.__doc__

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            change(self)

    WithDefect.__name__ = WithDefect.__qualname__ = change.__name__
    return WithDefect


class EmbedsUnscaled(AnyBackbone):
    """`embed_input_ids` looks rows up, where Gemma 3's embedding scales them."""

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(input_ids, self.llm.get_input_embeddings().weight)


class EmbedsScaledTwice(AnyBackbone):
    """`embed_input_ids` scales rows that Gemma's forward scales again."""

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.llm.get_input_embeddings()(input_ids)
        return rows * self.llm.config.hidden_size**0.5


class PositionsOfTheLastText(AWholeVisionModel):
    """A cached call goes on with the positions of the last text that was begun, which the library's
    model keeps."""

    forward = AnyBackbone.forward


class LossOfTheBatch(AWholeVisionModel):
    """In train() the loss is summed over the batch."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        if self.training and getattr(output, "loss", None) is not None:
            output.loss = output.loss * len(output.logits)
        return output


@dataclass(frozen=True)
class Planted:
    """A defect in a model's backbone, and the first clause that must fail."""

    factory: type[AnyBackbone]
    backbone_id: str
    clause: str


PLANTED = (
    Planted(_planted(no_rope_scaling), "llama3_2-1b-instruct", "FWD-01"),
    Planted(_planted(no_final_softcap), "gemma2-9b-instruct", "FWD-01"),
    Planted(_planted(no_attention_softcap), "gemma2-9b-instruct", "FWD-01"),
    Planted(_planted(no_window), "gemma2-9b-instruct", "FWD-04"),
    Planted(_planted(norms_without_their_offset), "gemma1.1-2b-instruct", "FWD-01"),
    Planted(EmbedsScaledTwice, "gemma1.1-2b-instruct", "EMB-09"),
    Planted(EmbedsUnscaled, "gemma3-270m-instruct", "EMB-09"),
    Planted(_planted(no_window), "gemma3-270m-instruct", "FWD-04"),
    Planted(_planted(no_key_norm), "qwen3-0_6b-instruct", "FWD-10"),
    Planted(_planted(no_query_bias), "qwen25-0_5b-instruct", "FWD-10"),
    Planted(_planted(no_window), "phi3-mini", "FWD-04"),
    Planted(_planted(gate_and_up_exchanged), "phi3-mini", "FWD-01"),
    Planted(_planted(residuals_in_turn), "pythia-70m", "FWD-01"),
    Planted(PositionsOfTheLastText, "qwen3-vl-4b-instruct", "FWD-15"),
    Planted(LossOfTheBatch, "qwen25-vl-3b-instruct", "TRN-01"),
    Planted(_planted(norm_before_attention), "olmo2-1b", "FWD-01"),
)
