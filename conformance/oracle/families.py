"""From a published `config.json` to an `Architecture`: one function per family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from conformance.oracle.architecture import (
    Architecture,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Names,
    Norm,
    Rotary,
    YarnScaling,
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
            "rotary": _rotary(config, _rotated(config)),
            "norm": Norm("rms", float(config["rms_norm_eps"])),
            "activation": _activation(config),
            "windows": (None,) * layers,
            "attention_scale": inverse_square_root(head_dimension),
            "tied": bool(config.get("tie_word_embeddings", False)),
            **differing,
        }
    )


def _mistral(config: Config) -> Architecture:
    """Mistral 7B (https://arxiv.org/abs/2310.06825): Llama with a sliding window in every layer.
    Mistral NeMo has no window, and heads that are narrower than hidden size over heads
    (`head_dim`)."""
    return _llama(config, windows=_windows(config, lambda layer: True))


def _phi(config: Config) -> Architecture:
    """Phi-1.5 and Phi-2 (https://arxiv.org/abs/2309.05463): one LayerNorm feeds attention and MLP
    in parallel, part of each head is rotated, everything has a bias."""
    if config.get("qk_layernorm"):
        raise NoReference(
            "`qk_layernorm` is true: no published Phi has it, and the reference does not compute it"
        )
    return _with_layer_norms(
        config,
        parallel=True,
        names=Names(
            output="dense",
            mlp_norm="",
            gate="",
            up="fc1",
            down="fc2",
            final_norm="model.final_layernorm",
        ),
    )


def _phi3(config: Config) -> Architecture:
    """Phi-3 and Phi-4-mini (https://arxiv.org/abs/2404.14219): Llama whose queries, keys and values
    share a matrix, as gate and up do. Some have a window in every layer; the long-context ones
    stretch their frequencies by LongRoPE, which the first configs called `su`."""
    return _llama(
        config,
        windows=_windows(config, lambda layer: True),
        query_key_value="stacked",
        names=Names(
            query="qkv_proj",
            key="qkv_proj",
            value="qkv_proj",
            gate="gate_up_proj",
            up="gate_up_proj",
        ),
    )


def _qwen2(config: Config) -> Architecture:
    """Qwen2 and Qwen2.5 (https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115): Llama
    with biases on queries, keys and values. `use_sliding_window` gives the layers from
    `max_window_layers` on a window; no published config sets it."""
    if not config["use_sliding_window"]:
        config = {**config, "sliding_window": None}
    first = int(config["max_window_layers"])
    return _llama(config, windows=_windows(config, lambda layer: layer >= first))


def _qwen3(config: Config) -> Architecture:
    """Qwen3 (https://arxiv.org/abs/2505.09388): Qwen2 without those biases; each head's queries and
    keys are normed before they are rotated."""
    return replace(_qwen2(config), names=Names(query_norm="q_norm", key_norm="k_norm"))


def _gemma(config: Config) -> Architecture:
    """Gemma (https://arxiv.org/abs/2403.08295): Llama with embeddings times the square root of the
    hidden size, norms that store how far their weight is from one, and a GELU-gated MLP.

    The GELU is the tanh approximation. The first published configs say `gelu` and mean it all the
    same (https://github.com/huggingface/transformers/pull/29402): that is why `hidden_activation`
    came, and goes before `hidden_act`.
    """
    named = config.get("hidden_activation") or config["hidden_act"]
    own = "gelu_pytorch_tanh" if named == "gelu" else named
    return _gemma_like({**config, "hidden_act": own})


def _gemma2(config: Config, **differing: Any) -> Architecture:
    """Gemma 2 (https://arxiv.org/abs/2408.00118): Gemma with norms after attention and MLP too,
    capped scores and logits, a scale of its own, and a window in every other layer, the first
    among them."""
    return _gemma_like(
        {**config, "hidden_act": config["hidden_activation"]},
        **{
            "windows": _windows(config, lambda layer: layer % 2 == 0),
            "attention_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
            "attention_softcap": config["attn_logit_softcapping"],
            "logits_softcap": config["final_logit_softcapping"],
            "names": Names(**_NORMS_AROUND),
            **differing,
        },
    )


def _gemma3(config: Config) -> Architecture:
    """Gemma 3 (https://arxiv.org/abs/2503.19786): Gemma 2 with normed queries and keys in place of
    caps, and five layers with a window for each without. Layers with a window turn by a theta of
    their own, and are not stretched."""
    every = int(config["sliding_window_pattern"])
    windows = _windows(config, lambda layer: (layer + 1) % every != 0)
    _, dimensions = _heads(config)
    # Since transformers 5 in a table for each type of layer; before, `rope_local_base_freq` is the
    # theta under a window, and everything else that of the other layers.
    tables = config.get("rope_parameters") or {}
    if not {"full_attention", "sliding_attention"} & tables.keys():
        tables = {"full_attention": {**tables, **(config.get("rope_scaling") or {})}}
    far, near = (
        _rotary({"rope_theta": theta, "rope_parameters": tables.get(kind)}, dimensions)
        for kind, theta in (
            ("full_attention", config["rope_theta"]),
            ("sliding_attention", config["rope_local_base_freq"]),
        )
    )
    return _gemma2(
        config,
        windows=windows,
        rotary=far,
        layer_rotaries=tuple(far if window is None else near for window in windows),
        names=Names(query_norm="q_norm", key_norm="k_norm", **_NORMS_AROUND),
    )


def _olmo2(config: Config) -> Architecture:
    """OLMo 2 (https://arxiv.org/abs/2501.00656): Llama with norms after attention and MLP in place
    of before, and queries and keys normed over all heads together."""
    return _llama(
        config,
        norm=Norm("rms", float(config["rms_norm_eps"]), wide_weight=True),
        query_key_norm="width",
        names=Names(
            attention_norm="",
            after_attention_norm="post_attention_layernorm",
            mlp_norm="",
            after_mlp_norm="post_feedforward_layernorm",
            query_norm="q_norm",
            key_norm="k_norm",
        ),
    )


def _gpt_neox(config: Config) -> Architecture:
    """GPT-NeoX-20B (https://arxiv.org/abs/2204.06745) and Pythia (https://arxiv.org/abs/2304.01373):
    LayerNorms of their own feed attention and MLP, in parallel unless `use_parallel_residual` is
    false; each head's query, key and value lie together; part of each head is rotated."""
    heads = int(config["num_attention_heads"])
    return _with_layer_norms(
        {
            **config,
            "num_key_value_heads": heads,
            "partial_rotary_factor": config["rotary_pct"],
            "rope_theta": config["rotary_emb_base"],
        },
        parallel=bool(config["use_parallel_residual"]),
        query_key_value="by head",
        names=Names(
            embedding="gpt_neox.embed_in",
            layers="gpt_neox.layers",
            attention="attention",
            query="query_key_value",
            key="query_key_value",
            value="query_key_value",
            output="dense",
            gate="",
            up="dense_h_to_4h",
            down="dense_4h_to_h",
            final_norm="gpt_neox.final_layer_norm",
            head="embed_out",
        ),
    )


def _stablelm(config: Config) -> Architecture:
    """StableLM 3B and StableLM 2 1.6B (https://arxiv.org/abs/2402.17834): Llama with LayerNorms and
    a quarter of each head rotated."""
    if config.get("qk_layernorm"):
        raise NoReference(
            "`qk_layernorm` is true: each head then has a norm of its own (StableLM 2 12B), which "
            "the reference does not compute"
        )
    parallel = bool(config.get("use_parallel_residual"))
    return _with_layer_norms(
        config, parallel=parallel, names=Names(mlp_norm="") if parallel else Names()
    )


def _with_layer_norms(config: Config, **differing: Any) -> Architecture:
    """Llama with LayerNorms."""
    return _llama(
        {"rms_norm_eps": 0.0, **config},
        norm=Norm("layer", float(config["layer_norm_eps"])),
        **differing,
    )


def _gemma_like(config: Config, **differing: Any) -> Architecture:
    """What all Gemmas share."""
    if config.get("use_bidirectional_attention"):
        raise NoReference("`use_bidirectional_attention` is true; the reference is causal")
    eps = float(config["rms_norm_eps"])
    return _llama(
        config,
        norm=Norm("rms", eps, weight_offset=1.0, wide_weight=True),
        embedding_scale=float(config["hidden_size"]) ** 0.5,
        **differing,
    )


_NORMS_AROUND = {
    "after_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "after_mlp_norm": "post_feedforward_layernorm",
}
"""Gemma's names since the second: `post_attention_layernorm` is another norm than Llama's."""

_FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "olmo2": _olmo2,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "stablelm": _stablelm,
}

_DEFAULTS: dict[str, Config] = {
    "gemma": {
        "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
        "num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True,
    },
    "gemma2": {
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256,
        "tie_word_embeddings": True, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072, "num_key_value_heads": 4, "head_dim": 256,
        "tie_word_embeddings": True, "sliding_window": 4096, "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    },
    "gpt_neox": {
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "rotary_pct": 0.25, "rotary_emb_base": 10_000, "use_parallel_residual": True,
    },
    "llama": {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "olmo2": {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    "phi": {
        "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
    },
    "phi3": {
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0,
        "sliding_window": None,
    },
    "qwen2": {
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768,
        "num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768,
        "num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False,
        "sliding_window": 4096, "max_window_layers": 28,
    },
    "stablelm": {
        "hidden_act": "silu", "layer_norm_eps": 1e-5, "max_position_embeddings": 4096,
        "num_key_value_heads": 32, "partial_rotary_factor": 0.25,
    },
}  # fmt: skip
"""transformers' defaults for fields that a published config omits (its configuration classes'
signatures)."""
_NULL_MEANS_NONE = frozenset(
    {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}
)
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


def _windows(config: Config, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer: of those that `layer_types` says (since transformers 4.53), or for
    which `slides` is true where the config has no such list."""
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if window is not None and window < 1:
        raise InvalidConfig(f"`sliding_window` is {window}, but should be null or at least 1")
    types = config.get("layer_types")
    if types is None:
        types = [
            "sliding_attention" if slides(layer) else "full_attention" for layer in range(layers)
        ]
    unknown = sorted(set(types) - {"sliding_attention", "full_attention"})
    if unknown:
        raise NoReference(
            f"`layer_types` holds {unknown[0]!r}; the reference computes full_attention and "
            f"sliding_attention"
        )
    if len(types) != layers:
        raise InvalidConfig(
            f"`layer_types` has {len(types)} entries, but should have one for each of the {layers} "
            f"layers"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rotated(config: Config) -> int:
    """How many dimensions of each head are rotated."""
    _, head_dimension = _heads(config)
    share = _rope(config).get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return int(head_dimension * float(share))


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
    if kind == "yarn":
        return Rotary(theta, dimensions, _yarn(config, settings))
    if kind in ("longrope", "su"):
        return Rotary(theta, dimensions, _long_rope(config, settings, dimensions // 2))
    raise NoReference(
        f"the rope type is {kind!r}; the reference computes default, linear, llama3, yarn and "
        f"longrope"
    )


def _yarn(config: Config, settings: Mapping[str, Any]) -> YarnScaling:
    """As https://arxiv.org/abs/2309.00071 recommends (32 turns and one; section 3.4 for the
    temperature, 0.1 ln s + 1 in cosines and sines), unless the config says otherwise."""
    unknown = sorted({"mscale", "mscale_all_dim", "truncate"} & settings.keys())
    if unknown:
        raise NoReference(
            f"the rope type is 'yarn' with `{unknown[0]}`, which the reference does not compute"
        )
    factor = float(settings["factor"])
    trained = settings.get("original_max_position_embeddings") or config["max_position_embeddings"]
    return YarnScaling(
        factor,
        int(trained),
        float(settings.get("beta_fast") or 32),
        float(settings.get("beta_slow") or 1),
        float(settings.get("attention_factor") or 0.1 * math.log(max(factor, 1.0)) + 1),
    )


def _long_rope(config: Config, settings: Mapping[str, Any], frequencies: int) -> LongRope:
    """As in Phi-3's `modeling_phi3.py` on the Hub, which follows https://arxiv.org/abs/2402.13753:
    unless the config gives an `attention_factor`, cosines and sines grow by √(1 + ln s / ln L), s
    how many times longer the sequence may be than the L positions of the first training."""
    trained = config.get("original_max_position_embeddings") or settings.get(
        "original_max_position_embeddings", config["max_position_embeddings"]
    )
    longer = float(settings.get("factor") or config["max_position_embeddings"] / trained)
    grown = math.sqrt(1 + math.log(longer) / math.log(trained)) if longer > 1 else 1.0
    factors = {
        name: tuple(float(factor) for factor in settings[name])
        for name in ("short_factor", "long_factor")
    }
    for name, values in factors.items():
        if len(values) != frequencies:
            raise InvalidConfig(
                f"`{name}` has {len(values)} entries, but should have one for each of the "
                f"{frequencies} frequencies"
            )
    return LongRope(
        factors["short_factor"],
        factors["long_factor"],
        int(trained),
        float(settings.get("attention_factor") or grown),
    )
