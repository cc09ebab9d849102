"""From a published `config.json` to an `Architecture`: one function per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from conformance.oracle.architecture import (
    Architecture,
    LinearScaling,
    Llama3Scaling,
    Names,
    Norm,
    Rotary,
)
from conformance.oracle.decoder import inverse_square_root

Config = Mapping[str, Any]


class NoReference(LookupError):
    """The reference does not compute this; the message names what, and what it does compute."""


class InvalidConfig(ValueError):
    """No decoder can have this config: it lacks a field, or contradicts itself or the tensors."""


def architecture_of(config: Config) -> Architecture:
    """The decoder that `config`, a parsed `config.json`, describes.

    Raises:
        NoReference: for a model type, activation or kind of rotary scaling that has no reference.
        InvalidConfig: for a field that is missing, or a value that no such decoder can have.
    """
    model_type = str(config.get("model_type"))
    if model_type not in _FAMILIES:
        raise NoReference(
            f"no reference decoder for model type {model_type!r}; there are some for "
            f"{', '.join(sorted(_FAMILIES))}"
        )
    given = {
        key: value for key, value in config.items() if value is not None or key in _NULL_MEANS_NONE
    }
    try:
        return _FAMILIES[model_type]({**_DEFAULTS[model_type], **given})
    except KeyError as missing:
        raise InvalidConfig(f"the config of model type {model_type!r} has no {missing}") from None


def _llama(config: Config, **differing: Any) -> Architecture:
    """Llama 2 (https://arxiv.org/abs/2307.09288); the checkpoint decides whether there are
    biases."""
    heads, head_dimension = _heads(config)
    layers = int(config["num_hidden_layers"])
    return Architecture(
        **{
            "hidden": int(config["hidden_size"]),
            "layers": layers,
            "heads": heads,
            "key_value_heads": _key_value_heads(config, heads),
            "head_dimension": head_dimension,
            "positions": int(config["max_position_embeddings"]),
            "rotary": _rotary(config, head_dimension),
            "norm": Norm("rms", float(config["rms_norm_eps"])),
            "activation": _activation(config),
            "windows": (None,) * layers,
            "attention_scale": inverse_square_root(head_dimension),
            "tied": bool(config.get("tie_word_embeddings", False)),
            **differing,
        }
    )


def _mistral(config: Config) -> Architecture:
    """Mistral 7B (https://arxiv.org/abs/2310.06825): Llama with a sliding window in every layer."""
    window = config.get("sliding_window")
    if window is not None and window < 1:
        raise InvalidConfig(f"`sliding_window` is {window}, but should be null or at least 1")
    return _llama(config, windows=(window,) * int(config["num_hidden_layers"]))


def _phi(config: Config) -> Architecture:
    """Phi-1.5 and Phi-2 (https://arxiv.org/abs/2309.05463): one LayerNorm feeds attention and MLP
    in parallel, part of each head is rotated, everything has a bias."""
    if config.get("qk_layernorm"):
        raise NoReference(
            "`qk_layernorm` is true: no published Phi has it, and the reference does not compute it"
        )
    _, head_dimension = _heads(config)
    share = float(
        _rope(config).get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5))
    )
    return _llama(
        {"rms_norm_eps": 0.0, **config},
        norm=Norm("layer", float(config["layer_norm_eps"])),
        rotary=_rotary(config, int(head_dimension * share)),
        names=Names(
            output="dense",
            mlp_norm="",
            gate="",
            up="fc1",
            down="fc2",
            final_norm="model.final_layernorm",
        ),
    )


_FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    "llama": _llama,
    "mistral": _mistral,
    "phi": _phi,
}

_DEFAULTS: dict[str, Config] = {
    "llama": {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "phi": {
        "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
"""transformers' defaults for fields that a published config omits (its configuration classes'
signatures)."""
_NULL_MEANS_NONE = frozenset({"sliding_window"})
"""Fields in which null is a value, not an omission."""

_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _activation(config: Config) -> str:
    name = config["hidden_act"]
    if name not in _ACTIVATION_NAMES:
        raise NoReference(
            f"`hidden_act` is {name!r}; the reference computes {', '.join(_ACTIVATION_NAMES)}"
        )
    return _ACTIVATION_NAMES[name]


def _heads(config: Config) -> tuple[int, int]:
    """Number of query heads, and the width of one."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    dimension = config.get("head_dim")
    if heads < 1 or (dimension is None and hidden % heads):
        raise InvalidConfig(
            f"`num_attention_heads` is {heads}, but should divide `hidden_size`, {hidden}, unless "
            f"there is a `head_dim`"
        )
    return heads, int(dimension or hidden // heads)


def _key_value_heads(config: Config, heads: int) -> int:
    shared = int(config.get("num_key_value_heads") or heads)
    if shared < 1 or heads % shared:
        raise InvalidConfig(
            f"`num_key_value_heads` is {shared}, but should divide `num_attention_heads`, {heads}"
        )
    return shared


def _rope(config: Config) -> Mapping[str, Any]:
    """Rotary settings: in one table since transformers 5, scattered over the config before."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rotary(config: Config, dimensions: int) -> Rotary:
    if dimensions < 2 or dimensions % 2:
        raise InvalidConfig(
            f"{dimensions} dimensions of each head are rotated, but should be even and at least 2"
        )
    settings = _rope(config)
    theta = float(settings.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return Rotary(theta, dimensions)
    if kind == "linear":
        return Rotary(theta, dimensions, LinearScaling(float(settings["factor"])))
    if kind == "llama3":
        scaling = Llama3Scaling(
            float(settings["factor"]),
            float(settings["low_freq_factor"]),
            float(settings["high_freq_factor"]),
            int(settings["original_max_position_embeddings"]),
        )
        return Rotary(theta, dimensions, scaling)
    raise NoReference(
        f"the rope type is {kind!r}; the reference computes default, linear and llama3"
    )
