"""The tensors that a published config stands for, by name and shape: counted from the family's
table, not from a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from conformance.oracle.families import architecture_of

Config = Mapping[str, Any]
Shape = tuple[int, ...]


def parameter_shapes(config: Config) -> dict[str, Shape]:
    """Every parameter of the decoder that `config`, a parsed `config.json`, describes, in the order
    of computation.

    A tied head is left out, as checkpoints leave it out.

    Raises:
        NoReference: for a model type, activation or kind of rotary scaling that has no reference.
        InvalidConfig: for a field that is missing, or a value that no such decoder can have.
    """
    a = architecture_of(config)
    names, biased = a.names, _BIASED[str(config["model_type"])](config)
    vocabulary, inner = int(config["vocab_size"]), int(config["intermediate_size"])
    queries, shared = a.heads * a.head_dimension, a.key_value_heads * a.head_dimension
    shapes: dict[str, Shape] = {}

    def norm(path: str, width: int) -> None:
        shapes[f"{path}.weight"] = (width,)
        if a.norm.kind == "layer":
            shapes[f"{path}.bias"] = (width,)

    def linear(path: str, made: int, given: int, bias: bool) -> None:
        shapes[f"{path}.weight"] = (made, given)
        if bias:
            shapes[f"{path}.bias"] = (made,)

    def present(*kinds: str) -> list[str]:
        return [kind for kind in kinds if kind]

    shapes[f"{names.embedding}.weight"] = (vocabulary, a.hidden)
    for index in range(a.layers):
        layer = f"{names.layers}.{index}"
        attention, mlp = f"{layer}.{names.attention}", f"{layer}.{names.mlp}"
        for kind in present(names.attention_norm, names.after_attention_norm):
            norm(f"{layer}.{kind}", a.hidden)
        linear(f"{attention}.{names.query}", queries, a.hidden, biased["attention"])
        linear(f"{attention}.{names.key}", shared, a.hidden, biased["attention"])
        linear(f"{attention}.{names.value}", shared, a.hidden, biased["attention"])
        linear(f"{attention}.{names.output}", a.hidden, queries, biased["attention"])
        for kind in present(names.query_norm, names.key_norm):
            norm(f"{attention}.{kind}", a.head_dimension)
        for kind in present(names.mlp_norm, names.after_mlp_norm):
            norm(f"{layer}.{kind}", a.hidden)
        for kind in present(names.gate, names.up):
            linear(f"{mlp}.{kind}", inner, a.hidden, biased["mlp"])
        linear(f"{mlp}.{names.down}", a.hidden, inner, biased["mlp"])
    norm(names.final_norm, a.hidden)
    if not a.tied:
        linear(names.head, vocabulary, a.hidden, biased["head"])
    return shapes


def _none(_: Config) -> dict[str, bool]:
    return {"attention": False, "mlp": False, "head": False}


def _as_told(config: Config) -> dict[str, bool]:
    return {
        "attention": bool(config.get("attention_bias")), "mlp": bool(config.get("mlp_bias")),
        "head": False
    }  # fmt: skip


def _all(_: Config) -> dict[str, bool]:
    return {"attention": True, "mlp": True, "head": True}


_BIASED: dict[str, Callable[[Config], dict[str, bool]]] = {
    "llama": _as_told,
    "mistral": _none,
    "phi": _all,
}
"""Which matrices have a bias, by model type: Llama's published configs may say so, Mistral has
none, Phi has all."""
