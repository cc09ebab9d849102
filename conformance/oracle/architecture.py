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

    amplitude = 1.0

    def scaled(self, frequencies: torch.Tensor, length: int = 0) -> torch.Tensor:
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
    amplitude = 1.0

    def scaled(self, frequencies: torch.Tensor, length: int = 0) -> torch.Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class YarnScaling:
    """Frequencies stretched by how many turns they make over the positions of the first training
    (YaRN, https://arxiv.org/abs/2309.00071), as in its authors' code
    (https://github.com/jquesnelle/yarn), which ramps over the number of the frequency, in whole
    numbers, where the paper ramps over turns.

    Cosines and sines are multiplied by `amplitude`.
    """

    factor: float
    original_positions: int
    most_turns: float
    least_turns: float
    amplitude: float

    def scaled(self, frequencies: torch.Tensor, length: int = 0) -> torch.Tensor:
        """Waves of `most_turns` and more are kept, those of `least_turns` and fewer are slowed
        `factor` times."""

        def number(turns: float) -> float:
            """Which frequency makes so many turns: they fall by the same ratio, from one."""
            return math.log(turns * 2 * math.pi / self.original_positions) / math.log(
                float(frequencies[1])
            )

        first = max(math.floor(number(self.most_turns)), 0)
        last = min(math.ceil(number(self.least_turns)), 2 * len(frequencies) - 1)
        numbers = torch.arange(len(frequencies), dtype=frequencies.dtype)
        # Where the two fall together, the authors' code makes a step of the ramp.
        slowed = ((numbers - first) / max(last - first, 0.001)).clamp(0, 1)
        return frequencies * (1 - slowed + slowed / self.factor)


@dataclass(frozen=True)
class LongRope:
    """Each frequency divided by a factor of its own (LongRoPE, https://arxiv.org/abs/2402.13753),
    as Phi-3 publishes them: `short` up to `original_positions`, `long` for a sequence that reaches
    farther. Factors have the shape (dimensions / 2,).

    Cosines and sines are multiplied by `amplitude` at either length.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_positions: int
    amplitude: float

    def scaled(self, frequencies: torch.Tensor, length: int = 0) -> torch.Tensor:
        """All positions of a sequence of this `length` turn by the same set of factors, the near
        ones too."""
        factors = self.long if length > self.original_positions else self.short
        return frequencies / torch.tensor(factors, dtype=frequencies.dtype)


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864) in the half-split layout of
    Hugging Face checkpoints: of each head's first `dimensions`, number i is rotated with number i +
    `dimensions`/2."""

    theta: float
    dimensions: int
    scaling: Llama3Scaling | LinearScaling | YarnScaling | LongRope | None = None

    def frequencies(self, length: int = 0) -> torch.Tensor:
        """Radians per position, float64, of shape (`dimensions` / 2,), for a sequence whose
        farthest position is the `length`-th."""
        exponents = torch.arange(0, self.dimensions, 2, dtype=torch.float64) / self.dimensions
        frequencies = self.theta**-exponents
        return self.scaling.scaled(frequencies, length) if self.scaling else frequencies

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.scaling.amplitude if self.scaling else 1.0


@dataclass(frozen=True)
class Norm:
    """`rms` (https://arxiv.org/abs/1910.07467) or `layer` (https://arxiv.org/abs/1607.06450)
    normalisation.

    `weight_offset` is added to the stored weight: Gemma stores how far it is from one. With
    `wide_weight` the weight of an `rms` norm is applied before the result is rounded to the working
    dtype, as in Gemma and OLMo 2, without it after, as in Llama.
    """

    kind: str
    eps: float
    weight_offset: float = 0.0
    wide_weight: bool = False


@dataclass(frozen=True)
class Names:
    """Where the modules stand in the checkpoint: `model.layers.3.self_attn.o_proj` and the like.

    An empty name is a module that the family does not have: without `gate` the MLP is a plain one.
    Parts under one name share a matrix: `Architecture.query_key_value` says how queries, keys and
    values lie in it; a gate lies above what it gates.
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

    `layer_rotaries` has one entry per layer where layers differ; it is empty where all use
    `rotary`. `parallel` says that attention and MLP both read the layer's input, normed once
    (without a name for `mlp_norm`) or each by a norm of its own.

    `query_key_value` is the order of rows in a shared matrix: `stacked`, all queries, all keys, all
    values (Phi-3), or `by head`, each head's query, key and value in turn (GPT-NeoX). Where queries
    and keys are normed, `query_key_norm` says over what: each `head` by itself, or the `width` of
    all heads together.
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
    layer_rotaries: tuple[Rotary, ...] = ()
    parallel: bool = False
    query_key_value: str = "apart"
    query_key_norm: str = "head"
    names: Names = field(default_factory=Names)

    def rotary_of(self, layer: int) -> Rotary:
        """The rotary embedding of one layer."""
        return self.layer_rotaries[layer] if self.layer_rotaries else self.rotary

    def rows_of(self, part: str) -> slice | torch.Tensor | None:
        """The rows that hold `part`, one of `query`, `key` and `value`, in the matrix that the
        three share; None where each has its own."""
        queries, shared = (
            count * self.head_dimension for count in (self.heads, self.key_value_heads)
        )
        if self.query_key_value == "stacked":
            first = {"query": 0, "key": queries, "value": queries + shared}[part]
            return slice(first, first + (queries if part == "query" else shared))
        if self.query_key_value == "by head":
            place = ("query", "key", "value").index(part)
            rows = torch.arange(3 * queries).view(self.heads, 3, self.head_dimension)
            return rows[:, place].flatten()
        return None
