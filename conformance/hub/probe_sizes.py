"""The sizes of a probe checkpoint, derived from a published config by one rule.

The rule keeps what decides how a model is wired and shrinks the rest:

- heads: two key-value heads (one where there is one), as many query heads to each as published, but
  at most eight; four of each where every query head has its own;
- the width of a head: the smallest even one, from eight on, of which the rotated share is an even
  number of at least four;
- the hidden width and that of the MLP: in the published ratio to the heads, in multiples of eight;
  where that leaves less than 48, there are twice as many heads, or wider ones: a narrower model
  learns too slowly for the laws of training;
- layers: two, or as many as it takes to see each kind of layer;
- windows: 16 tokens, which a test sequence outgrows; sections of a rotary embedding: in proportion;
- the vocabulary: as published;
- what stands beside the language model of a vision-language checkpoint, which no text passes
  through: small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

from conformance.hub.published import TEXT_CONFIG, text_part

WINDOW = 16
"""Tokens that a layer with a window sees in a probe."""
_LAYERS, _HEADS, _GROUP = 2, 4, 8
_HEAD_WIDTHS = range(8, 129, 2)
_MULTIPLE = 8
_NARROWEST = 48
_EXPERTS = 4

_TOWER = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "depth": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
    "resampler_n_latents": 4,
}
"""The sizes of a vision tower or a connector, by what configs call them."""

_WIDTHS = ("hidden_size", "embed_dim", "projection_dim", "out_hidden_size")
"""Sizes of them that may be the language model's width."""

_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "mlp": ("intermediate_size", "n_inner", "ffn_dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
}
"""What each size is called in the configs of different families."""


class NoSizes(ValueError):
    """A config from which the rule derives no sizes. The message says what is missing."""


def probe_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a published `config` (a parsed `config.json`) that a probe has another value of,
    with that value.

    Raises:
        NoSizes: the config does not say how wide the model is, or how many heads and layers it has.
    """
    text = text_part(config)
    if text is not config:
        sizes = {**text, **probe_sizes(text)}
        return {TEXT_CONFIG: sizes, **_of_towers(config, text, sizes)}
    keys = {size: _key_of(text, names) for size, names in _NAMES.items()}
    for size in ("hidden", "heads", "layers"):
        if keys[size] is None:
            raise NoSizes(f"the config has none of {', '.join(_NAMES[size])}")
    published = {size: int(text[key]) for size, key in keys.items() if key is not None}
    heads, groups = published["heads"], published.get("key_value_heads", published["heads"])
    for size in ("hidden", "heads", "layers"):
        if published[size] < 1:
            raise NoSizes(f"{keys[size]} is {published[size]}")
    if groups < 1 or heads % groups:
        raise NoSizes(f"{heads} attention heads cannot share {groups} key-value heads")
    given_width = text.get("head_dim")
    head_width = int(given_width) if given_width else published["hidden"] // heads
    if head_width < 1:
        raise NoSizes(f"{heads} attention heads do not fit into a width of {published['hidden']}")

    width = least = _head_width(text)
    new_groups = _HEADS if groups == heads else min(2, groups)
    shared = min(_GROUP, heads // groups)
    ratio = published["hidden"] / (heads * head_width)
    while new_groups * shared * width * ratio < _NARROWEST:
        if 2 * new_groups <= groups:
            new_groups *= 2
        else:
            width += least
    new_heads = new_groups * shared
    hidden = new_heads * width if ratio == 1 else _rounded(new_heads * width * ratio)
    layers = _layers(text, published["layers"])
    sizes = {
        "hidden": hidden,
        "heads": new_heads,
        "key_value_heads": new_groups,
        "layers": layers,
        "mlp": _rounded(hidden * published["mlp"] / published["hidden"])
        if "mlp" in published
        else None,
    }
    changed: dict[str, Any] = {
        key: sizes[size] for size, key in keys.items() if key is not None and sizes[size]
    }
    if given_width:
        changed["head_dim"] = width
    if isinstance(text.get("rotary_dim"), int):
        changed["rotary_dim"] = round(width * _rotated_share(text))
    changed |= _of_attention(text, head_width, width, hidden // new_heads)
    changed |= _per_layer(text, published["layers"], layers)
    changed |= _of_experts(text, hidden / published["hidden"])
    # Qwen2-VL's config is its language model's, with a part for the tower.
    return changed | _of_towers(config, text, {**text, **changed})


def layers_of(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """How many layers a parsed config has, and under which key; None if it does not say."""
    text = text_part(config)
    key = _key_of(text, _NAMES["layers"])
    return None if key is None else (key, int(text[key]))


def _key_of(config: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(config.get(name), int)), None)


def _rounded(size: float) -> int:
    return max(_MULTIPLE, _MULTIPLE * round(size / _MULTIPLE))


def _rotated_share(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    for found in (
        rope.get("partial_rotary_factor"),
        config.get("partial_rotary_factor"),
        config.get("rotary_pct"),
        _share_of_head(config),
    ):
        if found is not None:
            return float(found)
    # Whose class rotates half of each head unless told otherwise.
    return 0.5 if config.get("model_type") == "phi" else 1.0


def _share_of_head(config: Mapping[str, Any]) -> float | None:
    """The rotated share where a config says how many dimensions are rotated, as GPT-J's does."""
    rotated = config.get("rotary_dim")
    hidden, heads = (_key_of(config, _NAMES[size]) for size in ("hidden", "heads"))
    if not isinstance(rotated, int) or hidden is None or heads is None:
        return None
    return rotated * int(config[heads]) / int(config[hidden])


def _head_width(config: Mapping[str, Any]) -> int:
    share = _rotated_share(config)
    for width in _HEAD_WIDTHS:
        rotated = width * share
        if rotated >= 4 and abs(rotated - round(rotated)) < 1e-9 and round(rotated) % 2 == 0:
            return width
    raise NoSizes(f"no head of up to {_HEAD_WIDTHS[-1]} has an even share of {share} of its width")


def _lists_per_layer(config: Mapping[str, Any], layers: int) -> dict[str, list[Any]]:
    return {
        key: value
        for key, value in config.items()
        if isinstance(value, list) and len(value) == layers and layers > 1
    }


def _layers(config: Mapping[str, Any], published: int) -> int:
    """As few layers as show each kind that there is, and two where the model has as many."""
    fewest = min(_LAYERS, published)
    for values in _lists_per_layer(config, published).values():
        kinds = {repr(value) for value in values}
        seen: set[str] = set()
        for count, value in enumerate(values, 1):
            seen.add(repr(value))
            if seen == kinds:
                fewest = max(fewest, count)
                break
    # Every so many layers are of another kind.
    for key in ("sliding_window_pattern", "no_rope_layer_interval", "full_attention_interval"):
        if isinstance(config.get(key), int):
            fewest = max(fewest, min(int(config[key]), published))
    dense = config.get("first_k_dense_replace")
    return max(fewest, dense + 1) if isinstance(dense, int) else fewest


def _per_layer(config: Mapping[str, Any], published: int, layers: int) -> dict[str, Any]:
    changed: dict[str, Any] = {
        key: values[:layers] for key, values in _lists_per_layer(config, published).items()
    }
    if isinstance(config.get("max_window_layers"), int):
        windowed = config.get("use_sliding_window") and config["max_window_layers"] < published
        changed["max_window_layers"] = layers - 1 if windowed else layers
    return changed


def _of_attention(
    config: Mapping[str, Any], head_width: int, width: int, per_head: int
) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        changed["sliding_window"] = WINDOW
    scalar = config.get("query_pre_attn_scalar")
    if scalar is not None:
        # Gemma scales by the width of a head, and its largest by the hidden width over the heads.
        changed["query_pre_attn_scalar"] = width if scalar == head_width else per_head
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key)
        if isinstance(scaling, Mapping) and isinstance(scaling.get("long_factor"), list):
            count = round(width * _rotated_share(config)) // 2
            changed[key] = {
                **scaling,
                **{n: _spread(scaling[n], count) for n in ("short_factor", "long_factor")},
            }
        if isinstance(scaling, Mapping) and isinstance(scaling.get("mrope_section"), list):
            half = round(width * _rotated_share(config)) // 2
            changed[key] = {
                **scaling,
                "mrope_section": _in_proportion(scaling["mrope_section"], half),
            }
    return changed


def _in_proportion(parts: list[int], total: int) -> list[int]:
    """`total` cut in the proportions of `parts`, each rounded."""
    ends = [round(total * end / sum(parts)) for end in accumulate(parts)]
    return [end - begin for begin, end in pairwise([0, *ends])]


def _spread(values: list[float], count: int) -> list[float]:
    """As many of the values, from the first to the last."""
    last = len(values) - 1
    return [values[round(i * last / max(1, count - 1))] for i in range(count)]


def _of_towers(
    config: Mapping[str, Any], text: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The other parts of a vision-language config. What is as wide as the language model in the
    published config is so in the probe."""
    key = _key_of(text, _NAMES["hidden"])
    assert key is not None, "there are sizes of it"
    width, narrow = text[key], sizes[key]
    taken = config.get("vision_feature_layer") or 0
    deepest = max(abs(layer) for layer in (taken if isinstance(taken, list) else [taken]))

    def of(name: str, size: Any) -> Any:
        if not isinstance(size, int) or isinstance(size, bool):
            return size
        if size == width and name in _WIDTHS:
            return narrow
        if name == "num_hidden_layers":
            return min(size, max(_TOWER[name], deepest))
        return min(size, _TOWER.get(name, size))

    return {
        part: {name: of(name, size) for name, size in config[part].items()}
        for part in parts_beside_text(config)
    }


def parts_beside_text(config: Mapping[str, Any]) -> list[str]:
    """The keys of a vision-language config that describe what stands beside its language model."""
    return [
        key
        for key, part in config.items()
        if key.endswith("_config")
        and key not in (TEXT_CONFIG, "quantization_config")
        and isinstance(part, Mapping)
    ]


def _of_experts(config: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if isinstance(config.get(key), int) and config[key] > _EXPERTS:
            changed[key] = _EXPERTS
    if changed and isinstance(config.get("n_group"), int):
        changed |= {"n_group": min(2, config["n_group"]), "topk_group": 1}
    if changed and isinstance(config.get("num_experts_per_tok"), int):
        changed["num_experts_per_tok"] = min(2, config["num_experts_per_tok"])
    for key in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if isinstance(config.get(key), int) and config[key]:
            changed[key] = _rounded(math.ceil(config[key] * ratio))
    return changed
