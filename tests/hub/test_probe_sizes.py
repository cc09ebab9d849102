"""Probe sizes by the rule: what decides the wiring is kept."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.hub.probe_sizes import WINDOW, NoSizes, probe_sizes

PLAIN: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128_256,
}  # fmt: skip


def test_grouping_and_ratios_stay() -> None:
    sizes = probe_sizes(PLAIN)
    assert sizes == {
        "hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_hidden_layers": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "groups", "expected"),
    [(14, 2, (14, 2)), (8, 1, (8, 1)), (71, 1, (8, 1)), (64, 8, (16, 2)), (9, 3, (6, 2)),
     (32, 32, (8, 8))],
)  # fmt: skip
def test_heads_are_grouped_as_published(heads: int, groups: int, expected: tuple[int, int]) -> None:
    sizes = probe_sizes(
        {**PLAIN, "hidden_size": 64 * heads, "num_attention_heads": heads,
         "num_key_value_heads": groups}
    )  # fmt: skip
    assert (sizes["num_attention_heads"], sizes["num_key_value_heads"]) == expected
    assert sizes["hidden_size"] == 8 * expected[0]


def test_heads_wider_than_the_hidden_size_stay_so() -> None:
    gemma = {
        **PLAIN, "hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256, "query_pre_attn_scalar": 256,
    }  # fmt: skip
    sizes = probe_sizes(gemma)
    assert sizes["head_dim"] == sizes["query_pre_attn_scalar"] == 8
    assert sizes["hidden_size"] == 48 < 8 * sizes["num_attention_heads"] == 64


@pytest.mark.parametrize(("share", "width"), [(0.25, 16), (0.4, 10), (0.5, 8), (1.0, 8)])
def test_the_rotated_share_of_a_head_is_even(share: float, width: int) -> None:
    sizes = probe_sizes({**PLAIN, "head_dim": 128, "partial_rotary_factor": share})
    assert sizes["head_dim"] == width


def test_there_are_layers_of_each_kind() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    sizes = probe_sizes(
        {**PLAIN, "num_hidden_layers": 24, "layer_types": kinds * 4, "sliding_window": 512}
    )
    assert sizes["num_hidden_layers"] == 6
    assert sizes["layer_types"] == kinds
    assert sizes["sliding_window"] == WINDOW


def test_a_window_that_is_off_stays_off() -> None:
    sizes = probe_sizes(
        {**PLAIN, "sliding_window": 131_072, "use_sliding_window": False, "max_window_layers": 28}
    )
    assert "sliding_window" not in sizes
    assert sizes["max_window_layers"] == sizes["num_hidden_layers"]


def test_a_window_from_some_layer_on_begins_in_the_last() -> None:
    sizes = probe_sizes(
        {**PLAIN, "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20}
    )
    assert (sizes["sliding_window"], sizes["max_window_layers"]) == (WINDOW, 1)


def test_the_factors_of_long_positions_fit_the_narrower_head() -> None:
    factors = [float(i) for i in range(48)]
    scaling = {"type": "longrope", "short_factor": factors, "long_factor": factors}
    sizes = probe_sizes({**PLAIN, "hidden_size": 3072, "rope_scaling": scaling})
    assert sizes["rope_scaling"]["long_factor"] == [0.0, 16.0, 31.0, 47.0]


def test_a_deep_model_is_as_small() -> None:
    assert probe_sizes({**PLAIN, "num_hidden_layers": 400})["num_hidden_layers"] == 2


def test_what_is_missing_is_named() -> None:
    with pytest.raises(NoSizes, match="hidden_size, n_embd, d_model"):
        probe_sizes({"num_attention_heads": 4})
    with pytest.raises(NoSizes, match="6 attention heads cannot share 4"):
        probe_sizes({**PLAIN, "num_attention_heads": 6, "num_key_value_heads": 4})


@pytest.mark.parametrize(("feature_layer", "layers"), [(-2, 2), ([-2, 4], 4), (None, 2)])
def test_what_stands_beside_a_language_model_is_small(feature_layer: Any, layers: int) -> None:
    sizes = probe_sizes(
        {
            "text_config": {**PLAIN, "model_type": "llama"},
            "vision_config": {
                "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                "num_hidden_layers": 24, "image_size": 336, "patch_size": 14,
                "projection_dim": 4096, "model_type": "clip_vision_model", "is_wide": True,
            },
            "vision_feature_layer": feature_layer,
        }
    )  # fmt: skip
    assert sizes["text_config"] == {**PLAIN, "model_type": "llama", **probe_sizes(PLAIN)}
    assert sizes["vision_config"] == {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": layers, "image_size": 336, "patch_size": 14,
        "projection_dim": 64, "model_type": "clip_vision_model", "is_wide": True,
    }  # fmt: skip
