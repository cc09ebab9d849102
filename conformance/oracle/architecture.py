"""What a decoder computes, as numbers and choices: everything the reference needs besides the
weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Llama3Scaling:
    """Rotary frequencies stretched by wavelength, as Llama 3.1 was trained (its model card's
    `rope_scaling`)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int

    def scaled(self, frequencies: torch.Tensor) -> torch.Tensor:
        """Long waves are slowed `factor` times, short ones kept, those between interpolated."""
        turns = self.original_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_frequency_factor) / (
            self.high_frequency_factor - self.low_frequency_factor
        )
        kept = kept.clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (position interpolation, https://arxiv.org/abs/2306.15595)."""

    factor: float

    def scaled(self, frequencies: torch.Tensor) -> torch.Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864) in the half-split layout of
    Hugging Face checkpoints: of each head's first `dimensions`, number i is rotated with number i +
    `dimensions`/2."""

    theta: float
    dimensions: int
    scaling: Llama3Scaling | LinearScaling | None = None

    def frequencies(self) -> torch.Tensor:
        """Radians per position, float64, of shape (`dimensions` / 2,)."""
        exponents = torch.arange(0, self.dimensions, 2, dtype=torch.float64) / self.dimensions
        frequencies = self.theta**-exponents
        return self.scaling.scaled(frequencies) if self.scaling else frequencies


@dataclass(frozen=True)
class Norm:
    """`rms` (https://arxiv.org/abs/1910.07467) or `layer` (https://arxiv.org/abs/1607.06450)
    normalisation.

    `weight_offset` is added to the stored weight: Gemma stores how far it is from one.
    """

    kind: str
    eps: float
    weight_offset: float = 0.0


@dataclass(frozen=True)
class Names:
    """Where the modules stand in the checkpoint: `model.layers.3.self_attn.o_proj` and the like.

    An empty name is a module that the family does not have: without `mlp_norm` one norm feeds
    attention and MLP side by side (Phi's parallel residual), without `gate` the MLP is a plain one.
    """

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    attention_norm: str = "input_layernorm"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    query_norm: str = ""
    key_norm: str = ""
    after_attention_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    after_mlp_norm: str = ""
    final_norm: str = "model.norm"
    head: str = "lm_head"


@dataclass(frozen=True)
class Architecture:
    """One decoder. Sizes are counts; `windows` has one entry per layer, None for full attention.

    Under a window a query sees its own key and the `window - 1` before it.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dimension: int
    positions: int
    rotary: Rotary
    norm: Norm
    activation: str
    windows: tuple[int | None, ...]
    attention_scale: float
    tied: bool = False
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    names: Names = field(default_factory=Names)
