"""The tensors that a published config stands for, by name and shape: counted from the family's
table, not from a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from conformance.oracle.architecture import Architecture
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
    norms_width = {"head": (1, 1), "width": (a.heads, a.key_value_heads)}[a.query_key_norm]
    shapes: dict[str, Shape] = {}

    def norm(path: str, width: int) -> None:
        shapes[f"{path}.weight"] = (width,)
        if a.norm.kind == "layer":
            shapes[f"{path}.bias"] = (width,)

    def linear(path: str, shape: Shape, biased: bool) -> None:
        shapes[f"{path}.weight"] = shape
        if biased:
            shapes[f"{path}.bias"] = shape[:1]

    def present(*kinds: str) -> list[str]:
        return [kind for kind in kinds if kind]

    shapes[f"{names.embedding}.weight"] = (vocabulary, a.hidden)
    for index in range(a.layers):
        layer = f"{names.layers}.{index}"
        attention, mlp = f"{layer}.{names.attention}", f"{layer}.{names.mlp}"
        for kind in present(names.attention_norm, names.after_attention_norm):
            norm(f"{layer}.{kind}", a.hidden)
        for kind, shape in attention_shapes(a).items():
            part = "output" if kind == names.output else "attention"
            linear(f"{attention}.{kind}", shape, biased[part])
        for kind, heads in zip((names.query_norm, names.key_norm), norms_width, strict=True):
            if kind:
                norm(f"{attention}.{kind}", heads * a.head_dimension)
        for kind in present(names.mlp_norm, names.after_mlp_norm):
            norm(f"{layer}.{kind}", a.hidden)
        together = 2 if names.gate == names.up else 1
        for kind in dict.fromkeys(present(names.gate, names.up)):
            linear(f"{mlp}.{kind}", (together * inner, a.hidden), biased["mlp"])
        linear(f"{mlp}.{names.down}", (a.hidden, inner), biased["mlp"])
    norm(names.final_norm, a.hidden)
    if not a.tied:
        linear(names.head, (vocabulary, a.hidden), biased["head"])
    return shapes


def attention_shapes(a: Architecture) -> dict[str, Shape]:
    """The matrices of one layer's attention by their name in it, those that share one together."""
    names = a.names
    queries, shared = a.heads * a.head_dimension, a.key_value_heads * a.head_dimension
    rows: dict[str, int] = {}
    for kind, made in ((names.query, queries), (names.key, shared), (names.value, shared)):
        rows[kind] = rows.get(kind, 0) + made
    shapes: dict[str, Shape] = {kind: (made, a.hidden) for kind, made in rows.items()}
    return shapes | {names.output: (a.hidden, queries)}


_Biased = dict[str, bool]
"""Whether there are biases on queries, keys and values (`attention`), on what attention hands on
(`output`), in the MLP and on the head."""


def _none(_: Config) -> _Biased:
    return {"attention": False, "output": False, "mlp": False, "head": False}


def _as_told(config: Config) -> _Biased:
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    return {"attention": attention, "output": attention, "mlp": mlp, "head": False}


def _qwen2(_: Config) -> _Biased:
    return {**_none(_), "attention": True}


def _gpt_neox(config: Config) -> _Biased:
    attention = bool(config.get("attention_bias", True))
    return {"attention": attention, "output": attention, "mlp": True, "head": False}


def _stablelm(config: Config) -> _Biased:
    return {**_none(config), "attention": bool(config.get("use_qkv_bias"))}


def _all(_: Config) -> _Biased:
    return {"attention": True, "output": True, "mlp": True, "head": True}


_BIASED: dict[str, Callable[[Config], _Biased]] = {
    "gemma": _as_told,
    "gemma2": _as_told,
    "gemma3_text": _as_told,
    "gpt_neox": _gpt_neox,
    "llama": _as_told,
    "mistral": _none,
    "olmo2": _as_told,
    "phi": _all,
    "phi3": _none,
    "qwen2": _qwen2,
    "qwen3": _as_told,
    "stablelm": _stablelm,
}
"""Which matrices have a bias, by model type: some configs say so (`attention_bias`, `mlp_bias`,
`use_qkv_bias`), Qwen2 has them on queries, keys and values, GPT-NeoX everywhere but on the head,
Phi everywhere, Mistral and Phi-3 nowhere."""
