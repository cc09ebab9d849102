"""What is timed: prefill, decode and a training step, and the FLOPs and bytes that each must
cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from conformance.bench.points import Point
from conformance.parity.library import text_config
from conformance.parity.probes import drawn_ids

DECODED = {"probe": 2, "full": 16}
"""Tokens that one round decodes, by size: a single token is too short to time."""


@dataclass(frozen=True)
class Work:
    """A workload ready to run: `run` is timed, on what `prepare` returns, which is not."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any]
    tokens: int
    flops: float
    bytes_read: float


def work_of(backbone: Any, llm: Any, point: Point, seed: int) -> Work:
    """`point`'s workload on `backbone`, whose language model is `llm`: half precision, on its
    device."""
    vocabulary = int(llm.get_input_embeddings().weight.shape[0])
    on = next(llm.parameters()).device
    rows = [drawn_ids(vocabulary, point.tokens, seed + row) for row in range(point.batch)]
    ids = torch.cat(rows).to(on)
    mask = torch.ones_like(ids)
    forward = torch.compile(backbone.forward) if point.compiled else backbone.forward
    per_token, cache = flops_per_token(llm), cache_bytes(llm, point.batch, point.tokens)
    weights, decoded = read_weights(llm), DECODED[point.size]
    once = per_token * ids.numel() + attention_flops(llm, point.batch, 0, point.tokens)

    def prefill(_: Any) -> Any:
        with torch.no_grad():
            return forward(input_ids=ids, attention_mask=mask, use_cache=True)

    if point.workload == "prefill":
        return Work(prefill, lambda: None, ids.numel(), once, weights)

    if point.workload == "train":
        parameters = [parameter for parameter in llm.parameters() if parameter.requires_grad]

        def without_gradients() -> None:
            for parameter in parameters:
                parameter.grad = None

        def train(_: Any) -> Any:
            loss = forward(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
            loss.backward()
            return loss

        return Work(train, without_gradients, ids.numel(), 3 * once, 2 * weights)

    def filled() -> Any:
        return prefill(None).past_key_values

    def decode(past: Any) -> Any:
        token, seen = ids[:, :1], mask
        with torch.no_grad():
            for _ in range(decoded):
                seen = torch.cat([seen, seen[:, :1]], dim=1)
                out = backbone.forward(
                    input_ids=token, attention_mask=seen, past_key_values=past, use_cache=True
                )
                past, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        return token

    made, end = decoded * point.batch, point.tokens + decoded
    flops = per_token * made + attention_flops(llm, point.batch, point.tokens, end)
    return Work(decode, filled, made, flops, decoded * (weights + cache))


def flops_per_token(llm: Any) -> float:
    """Two FLOPs for each weight that a token is multiplied with: every matrix except the input
    embedding, including the head (PaLM, appendix B, https://arxiv.org/abs/2204.02311)."""
    return 2.0 * sum(weight.numel() for weight in _matrices(llm))


def read_weights(llm: Any) -> float:
    """Bytes of weights that any forward must read: every matrix but the input embedding, once."""
    return float(sum(weight.nbytes for weight in _matrices(llm)))


def attention_flops(llm: Any, batch: int, begin: int, end: int) -> float:
    """FLOPs of the attention scores and their weighted sum, for queries at positions `begin` to
    `end`, each over the keys it may see."""
    config = text_config(llm)
    keys = sum(
        min(position + 1, window)
        for window in _windows(config, end)
        for position in range(begin, end)
    )
    width = config.num_attention_heads * _head_dim(config)
    return 4.0 * batch * width * keys


def cache_bytes(llm: Any, batch: int, tokens: int) -> float:
    """Bytes of the keys and values of all layers that one decoded token must read."""
    config = text_config(llm)
    keys = sum(_windows(config, tokens))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = next(llm.parameters()).element_size()
    return 2.0 * batch * keys * heads * _head_dim(config) * size


def _windows(config: Any, tokens: int) -> list[int]:
    """How many of `tokens` keys a query may see in each layer. Without `layer_types`, all layers
    slide."""
    window = getattr(config, "sliding_window", None) or tokens
    slides = (
        getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    )
    return [min(window, tokens) if kind == "sliding_attention" else tokens for kind in slides]


def _matrices(llm: Any) -> list[Any]:
    embedding, head = llm.get_input_embeddings().weight, llm.get_output_embeddings()
    matrices = [
        parameter
        for parameter in llm.parameters()
        if parameter.dim() == 2 and parameter is not embedding
    ]
    # A tied head is the embedding, and tokens are multiplied with it all the same.
    return matrices + ([embedding] if head is not None and head.weight is embedding else [])


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
