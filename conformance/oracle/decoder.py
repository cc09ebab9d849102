"""The reference decoder: one causal language model, written from the papers, to be read beside
them.

It shares no code with transformers. In float64 it gives the true logits; in bfloat16, with float32
where careful eager PyTorch has it, it shows how far rounding alone moves them.

Shapes are written with these letters:

    B  batch                 H  heads of queries           D  hidden width
    S  sequence (queries)    G  key-value heads            d  width of one head
    K  sequence (keys)       V  vocabulary                 F  width inside the MLP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch.nn import functional

from conformance.oracle.architecture import Architecture, Rotary
from conformance.oracle.products import float32_accumulation

Trace = Callable[[str, torch.Tensor, torch.Tensor], object]
"""Called with a module's path in the checkpoint, its input and its output, as the decoder passes
them."""


@dataclass(frozen=True)
class Precision:
    """`working` holds weights, activations and matrix products; norms, softmax and angles are taken
    in `wide`. `scores` holds attention scores, which fused kernels do not round to `working`; None
    for `working`."""

    working: torch.dtype
    wide: torch.dtype
    scores: torch.dtype | None = None


FLOAT64 = Precision(torch.float64, torch.float64)
BFLOAT16 = Precision(torch.bfloat16, torch.float32)


Rows: TypeAlias = torch.Tensor | slice
"""Which rows of a matrix to use, by index or as one block."""

_QUERIES_AT_ONCE = 128
"""Queries whose attention is computed together: bounds the memory that scores take."""


def _gelu_new(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation (https://arxiv.org/abs/1606.08415), step by step as checkpoints that
    ask for `gelu_new` were trained: in bfloat16 every step rounds."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": _gelu_new,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Place:
    """Where the tokens of a batch stand: `positions` and `mask` are (B, S), the mask True at real
    tokens. Order in time is the order in the sequence."""

    positions: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor, positions: torch.Tensor | None = None) -> Place:
        """Without `positions`, real tokens count from zero and padding stands at zero."""
        mask = mask.bool()
        counted = (mask.long().cumsum(1) - 1).clamp(min=0)
        return cls(counted if positions is None else positions, mask)

    def visible(self, window: int | None) -> torch.Tensor:
        """Which keys each query may see, (B, S, K): the past, the last `window` of it, and no
        padding."""
        time = torch.arange(self.mask.shape[1], device=self.mask.device)
        age = time[:, None] - time[None, :]
        seen = (age >= 0) & (age < (window or len(time)))
        return seen[None] & self.mask[:, None, :]


class Decoder:
    """A causal language model over `weights`, a mapping from checkpoint names to tensors.

    Weights are cast as they are used, so that a mapping may make or read them on demand; nothing is
    kept.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, torch.Tensor],
        precision: Precision = FLOAT64,
    ) -> None:
        self.architecture = architecture
        self.precision = precision
        self._weights = weights

    def logits(
        self,
        embedded: torch.Tensor,
        place: Place,
        trace: Trace | None = None,
        *,
        tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, S, V) from embeddings (B, S, D), in the working dtype.

        `tokens` keeps only the logits of these ids: the head over a large vocabulary is most of a
        tiny model's work.
        """
        hidden = self.hidden(embedded, place, trace)
        final = self.architecture.names.final_norm
        normed = self.norm(final, hidden)
        if trace:
            trace(final, hidden, normed)
        return self.head(normed, trace, tokens=tokens)

    def hidden(
        self, embedded: torch.Tensor, place: Place, trace: Trace | None = None
    ) -> torch.Tensor:
        """The last layer's output, before the final norm; shapes as in `logits`."""
        hidden = embedded.to(self.precision.working)
        for index in range(self.architecture.layers):
            hidden = self.layer(index, hidden, place, trace)
        return hidden

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding for ids (B, S), times the family's scale.

        The scale is rounded to the working dtype first, as Gemma's was in training
        (https://github.com/huggingface/transformers/pull/29402).
        """
        rows = self._tensor(f"{self.architecture.names.embedding}.weight", ids)
        return rows * torch.tensor(self.architecture.embedding_scale, dtype=rows.dtype)

    def layer(
        self, index: int, hidden: torch.Tensor, place: Place, trace: Trace | None = None
    ) -> torch.Tensor:
        """One decoder layer: attention and MLP, each added to the residual."""
        names = self.architecture.names
        path = f"{names.layers}.{index}"
        told = trace or (lambda name, given, made: None)

        def passed(
            name: str, module: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
        ) -> torch.Tensor:
            made = module(given)
            told(f"{path}.{name}", given, made)
            return made

        def norm(name: str, given: torch.Tensor) -> torch.Tensor:
            return passed(name, lambda x: self.norm(f"{path}.{name}", x), given) if name else given

        def attention(normed: torch.Tensor) -> torch.Tensor:
            attended = passed(names.attention, lambda x: self.attention(index, x, place), normed)
            return norm(names.after_attention_norm, attended)

        def mlp(normed: torch.Tensor) -> torch.Tensor:
            fed = passed(names.mlp, lambda x: self.mlp(index, x), normed)
            return norm(names.after_mlp_norm, fed)

        def sequential() -> torch.Tensor:
            between = hidden + attention(norm(names.attention_norm, hidden))
            return between + mlp(norm(names.mlp_norm, between))

        def parallel() -> torch.Tensor:
            """Both from one norm (GPT-J, https://github.com/kingoflolz/mesh-transformer-jax;
            Phi), or each from its own (GPT-NeoX, https://arxiv.org/abs/2204.06745, section 2.1)."""
            normed = norm(names.attention_norm, hidden)
            fed = norm(names.mlp_norm, hidden) if names.mlp_norm else normed
            return attention(normed) + mlp(fed) + hidden

        out = parallel() if self.architecture.parallel else sequential()
        told(path, hidden, out)
        return out

    @float32_accumulation()
    def attention(self, index: int, hidden: torch.Tensor, place: Place) -> torch.Tensor:
        """Grouped-query attention (https://arxiv.org/abs/2305.13245) over normed `hidden`, (B, S,
        D).

        Heads share keys and values in consecutive groups: head h uses key-value head h // (heads /
        key_value_heads).
        """
        a, names = self.architecture, self.architecture.names
        path, rotary = f"{names.layers}.{index}.{names.attention}", a.rotary_of(index)

        def heads(part: str, name: str, norm: str = "") -> torch.Tensor:
            projected = self.linear(f"{path}.{name}", hidden, rows=a.rows_of(part))
            if norm and a.query_key_norm == "width":
                projected = self.norm(f"{path}.{norm}", projected)
            apart = projected.view(*hidden.shape[:2], -1, a.head_dimension)
            if norm and a.query_key_norm == "head":
                apart = self.norm(f"{path}.{norm}", apart)
            return apart.transpose(1, 2)

        query = self.rotated(heads("query", names.query, names.query_norm), place.positions, rotary)
        key = self.rotated(heads("key", names.key, names.key_norm), place.positions, rotary)
        value = heads("value", names.value)
        group = a.heads // a.key_value_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        visible = place.visible(a.windows[index])[:, None]
        in_scores = self.precision.scores or self.precision.working
        mixed = []
        for first in range(0, hidden.shape[1], _QUERIES_AT_ONCE):
            last = min(first + _QUERIES_AT_ONCE, hidden.shape[1])
            # Keys that none of these queries may see are left out, which only saves memory and
            # time.
            oldest = max(0, first - (a.windows[index] or last) + 1)
            scores = (
                query[:, :, first:last].to(in_scores)
                @ key[:, :, oldest:last].to(in_scores).transpose(2, 3)
                * a.attention_scale
            )
            if a.attention_softcap is not None:
                scores = a.attention_softcap * torch.tanh(scores / a.attention_softcap)
            # A query that sees nothing is padding: any finite value will do, as no query sees it.
            hidden_keys = ~visible[:, :, first:last, oldest:last]
            scores = scores.masked_fill(hidden_keys, torch.finfo(scores.dtype).min)
            shares = scores.to(self.precision.wide).softmax(-1).to(self.precision.working)
            mixed.append(shares @ value[:, :, oldest:last])
        joined = torch.cat(mixed, dim=2).transpose(1, 2).flatten(2)
        return self.linear(f"{path}.{names.output}", joined)

    def rotated(
        self, heads: torch.Tensor, positions: torch.Tensor, rotary: Rotary | None = None
    ) -> torch.Tensor:
        """(B, H, S, d), turned by position; by the architecture's `rotary` unless another is
        given."""
        rotary = rotary or self.architecture.rotary
        half = rotary.dimensions // 2
        length = int(positions.max()) + 1
        frequencies = rotary.frequencies(length).to(heads.device, self.precision.wide)
        angles = positions[:, None, :, None].to(self.precision.wide) * frequencies
        cos, sin = (
            (turn * rotary.amplitude).to(heads.dtype) for turn in (angles.cos(), angles.sin())
        )
        first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def mlp(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Gated (https://arxiv.org/abs/2002.05202) where the family has a gate, else plain."""
        names = self.architecture.names
        path = f"{names.layers}.{index}.{names.mlp}"
        activation = _ACTIVATIONS[self.architecture.activation]
        gate_rows, up_rows = None, None
        if names.gate == names.up:
            inner = self._weights[f"{path}.{names.up}.weight"].shape[0] // 2
            gate_rows, up_rows = slice(inner), slice(inner, None)
        up = self.linear(f"{path}.{names.up}", hidden, up_rows)
        gated = (
            activation(self.linear(f"{path}.{names.gate}", hidden, gate_rows)) * up
            if names.gate
            else activation(up)
        )
        return self.linear(f"{path}.{names.down}", gated)

    def norm(self, path: str, hidden: torch.Tensor) -> torch.Tensor:
        """Normalised over the last dimension in the wide dtype, rounded, then scaled by the
        weight."""
        norm = self.architecture.norm
        wide = hidden.to(self.precision.wide)
        weight = self._tensor(f"{path}.weight")
        if norm.kind == "layer":
            bias = self._tensor(f"{path}.bias")
            centred = wide - wide.mean(-1, keepdim=True)
            normed = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps)
            return (normed * weight.to(wide.dtype) + bias.to(wide.dtype)).to(hidden.dtype)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
        if norm.wide_weight:
            return (normed * (weight.to(wide.dtype) + norm.weight_offset)).to(hidden.dtype)
        return normed.to(hidden.dtype) * (weight + norm.weight_offset)

    def head(
        self,
        normed: torch.Tensor,
        trace: Trace | None = None,
        *,
        tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the whole vocabulary, or of `tokens`, from the final norm's output."""
        a, names = self.architecture, self.architecture.names
        logits = self.linear(names.embedding if a.tied else names.head, normed, rows=tokens)
        if trace:
            trace(names.head, normed, logits)
        if a.logits_softcap is not None:
            logits = a.logits_softcap * torch.tanh(logits / a.logits_softcap)
        return logits

    def modules(self, place: Place) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Every module of the layers and the final norm by its path, as a function of its input
        alone, in the order in which they compute. A layer comes after its parts."""
        names = self.architecture.names
        modules: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        for index in range(self.architecture.layers):
            path = f"{names.layers}.{index}"
            modules |= self.norms(path)
            modules[f"{path}.{names.attention}"] = partial(self.attention, index, place=place)
            modules[f"{path}.{names.mlp}"] = partial(self.mlp, index)
            modules[path] = partial(self.layer, index, place=place)
        return modules | {names.final_norm: partial(self.norm, names.final_norm)}

    def norms(self, layer: str = "") -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Every norm over the hidden width by its path, or only those of the layer at this path."""
        names = self.architecture.names
        kinds = (
            names.attention_norm,
            names.after_attention_norm,
            names.mlp_norm,
            names.after_mlp_norm,
        )
        layers = (
            [layer]
            if layer
            else [f"{names.layers}.{index}" for index in range(self.architecture.layers)]
        )
        paths = [f"{path}.{kind}" for path in layers for kind in kinds if kind]
        return {
            path: partial(self.norm, path)
            for path in (paths if layer else [*paths, names.final_norm])
        }

    @float32_accumulation()
    def linear(self, path: str, hidden: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        """A matrix product in the working dtype, with the bias if the checkpoint has one; of `rows`
        of the matrix alone, if they are given."""
        weight = self._tensor(f"{path}.weight", rows)
        bias = self._tensor(f"{path}.bias", rows) if f"{path}.bias" in self._weights else None
        return functional.linear(hidden, weight, bias)

    def _tensor(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        tensor = self._weights[name]
        return (tensor if rows is None else tensor[rows]).to(self.precision.working)


def inverse_square_root(count: int) -> float:
    """The scale of attention scores, 1 / √count (https://arxiv.org/abs/1706.03762)."""
    return 1 / math.sqrt(count)
