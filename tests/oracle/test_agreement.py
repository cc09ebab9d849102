"""Whether transformers' own models agree with the reference, for each model type and each choice
that its configs make; in float64, where nothing but float32 angles and norms is rounded, and in
bfloat16, where the reference rounds beside them.

transformers knows some types since a later release than others; those that the installed one lacks
are skipped.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers

from conformance.hub.weights import norm_centre
from conformance.oracle import BFLOAT16, Place, architecture_of
from conformance.oracle.shapes import parameter_shapes
from conformance.parity.equality import relative_rms
from conformance.parity.full_size import full_size_parity
from conformance.parity.gates import MODULE_RATIO, ROUNDING_RATIO, SEMANTICS, rounding_ratio
from conformance.parity.library import cast_parameters, library_config
from conformance.parity.modules import error_growth, first_outside, module_errors
from conformance.parity.probes import drawn_ids, in_shape, untrained
from conformance.parity.receptive_field import library_windows
from conformance.parity.reference import Reference
from conformance.parity.streaming import OneLayer, SeededWeights

CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
}

TINY = {
    "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 128, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = {**TINY, "num_key_value_heads": 2}
LAYER_NORMED = {
    **{key: value for key, value in TINY.items() if key != "rms_norm_eps"}, "layer_norm_eps": 1e-5,
}  # fmt: skip
SIZES = (1.0, 1.1, 1.3, 1.7, 2.5, 3.0, 4.0, 6.0)
LONG_ROPE = {
    "type": "longrope", "short_factor": list(SIZES), "long_factor": [2 * size for size in SIZES],
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama", **GROUPED, "hidden_act": "silu", "rope_theta": 1e5,
        "tie_word_embeddings": True,
    },
    "llama3.1": {
        "model_type": "llama", **GROUPED, "hidden_act": "silu", "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral-nemo": {
        "model_type": "mistral", **GROUPED, "hidden_act": "silu", "head_dim": 12,
        "sliding_window": None,
    },
    "qwen2": {"model_type": "qwen2", **GROUPED, "hidden_act": "silu", "use_sliding_window": False},
    "qwen2-tied": {
        "model_type": "qwen2", **GROUPED, "hidden_act": "silu", "tie_word_embeddings": True,
    },
    "qwen2-window": {
        "model_type": "qwen2", **GROUPED, "hidden_act": "silu", "use_sliding_window": True,
        "sliding_window": 9, "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", **GROUPED, "hidden_act": "silu", "head_dim": 24},
    "qwen3-tied-biases": {
        "model_type": "qwen3", **GROUPED, "hidden_act": "silu", "head_dim": 24,
        "attention_bias": True, "tie_word_embeddings": True,
    },
    "qwen3-yarn": {
        "model_type": "qwen3", **GROUPED, "hidden_act": "silu", "head_dim": 24,
        "max_position_embeddings": 512,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
        },
    },
    "gemma": {
        "model_type": "gemma", **GROUPED, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    },
    "gemma-untied": {
        "model_type": "gemma", **GROUPED, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 1,
    },
    "gemma2": {
        "model_type": "gemma2", **GROUPED, "head_dim": 24, "sliding_window": 9,
        "query_pre_attn_scalar": 40, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5, "tie_word_embeddings": True,
    },
    "gemma2-untied-uncapped": {
        "model_type": "gemma2", **GROUPED, "head_dim": 24, "sliding_window": 9,
        "query_pre_attn_scalar": 40, "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "gemma3": {
        "model_type": "gemma3_text", **GROUPED, "head_dim": 24, "sliding_window": 9,
        "sliding_window_pattern": 3, "query_pre_attn_scalar": 40, "rope_theta": 1e6,
        "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "tie_word_embeddings": True,
    },
    "gemma3-layer-types": {
        "model_type": "gemma3_text", **GROUPED, "head_dim": 24, "sliding_window": 9,
        "query_pre_attn_scalar": 40, "rope_theta": 1e6, "rope_local_base_freq": 100.0,
        "layer_types": [
            "full_attention", "sliding_attention", "sliding_attention", "full_attention",
        ],
    },
    "phi3": {"model_type": "phi3", **GROUPED, "hidden_act": "silu"},
    "phi3-window": {
        "model_type": "phi3", **TINY, "hidden_act": "silu", "sliding_window": 9,
        "tie_word_embeddings": True,
    },
    "phi3-longrope-short": {
        "model_type": "phi3", **GROUPED, "hidden_act": "silu", "rope_scaling": LONG_ROPE,
        "original_max_position_embeddings": 256,
    },
    "phi3-longrope-long": {
        "model_type": "phi3", **GROUPED, "hidden_act": "silu", "rope_scaling": LONG_ROPE,
        "original_max_position_embeddings": 32, "sliding_window": 9,
    },
    "phi4-mini": {
        "model_type": "phi3", **GROUPED, "hidden_act": "silu", "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0] * 6, "long_factor": list(SIZES[:6]),
        },
        "original_max_position_embeddings": 32, "tie_word_embeddings": True,
    },
    "olmo2": {"model_type": "olmo2", **TINY, "hidden_act": "silu"},
    "olmo2-grouped-tied": {
        "model_type": "olmo2", **GROUPED, "hidden_act": "silu", "tie_word_embeddings": True,
    },
    "pythia": {
        "model_type": "gpt_neox", **LAYER_NORMED, "hidden_act": "gelu", "rotary_pct": 0.25,
        "rotary_emb_base": 10_000, "use_parallel_residual": True,
    },
    "gpt_neox-sequential-tied": {
        "model_type": "gpt_neox", **LAYER_NORMED, "hidden_act": "gelu", "rotary_pct": 1.0,
        "rotary_emb_base": 1000, "use_parallel_residual": False, "tie_word_embeddings": True,
    },
    "gpt_neox-unbiased": {
        "model_type": "gpt_neox", **LAYER_NORMED, "hidden_act": "gelu_new", "rotary_pct": 0.5,
        "rotary_emb_base": 10_000, "use_parallel_residual": True, "attention_bias": False,
    },
    "stablelm": {
        "model_type": "stablelm", **LAYER_NORMED, "num_key_value_heads": 4, "hidden_act": "silu",
        "partial_rotary_factor": 0.25, "use_qkv_bias": True,
    },
    "stablelm-parallel-tied": {
        "model_type": "stablelm", **LAYER_NORMED, "num_key_value_heads": 2, "hidden_act": "silu",
        "partial_rotary_factor": 0.5, "use_parallel_residual": True, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The choices of published configs, in miniature. Windows are shorter than the text."""

LENGTH = 70
VERSION = transformers.__version__
BEFORE_4_45 = tuple(int(part) for part in VERSION.split(".")[:2]) < (4, 45)
LACKING = {
    "llama3.1": "its kind of rotary scaling",
    "mistral-nemo": "heads narrower than a share of the hidden size in Mistral",
    "qwen2-window": "windows in Qwen2's eager attention",
}
"""What transformers 4.40.1 does not compute of types that it knows."""


def model(name: str) -> tuple[Any, Reference]:
    """A model of transformers for the named config, and what it should compute."""
    config = deepcopy(CONFIGS[name])
    model_class = getattr(transformers, CLASSES[config["model_type"]], None)
    if model_class is None:
        pytest.skip(f"transformers {VERSION} has no {CLASSES[config['model_type']]}")
    if BEFORE_4_45 and name in LACKING:
        pytest.skip(f"transformers {VERSION} lacks {LACKING[name]}")
    llm = untrained(model_class, config, "eager", seed=3)
    return llm, Reference.of(llm, config)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("padding", [0, 9])
def test_transformers_agrees(name: str, padding: int) -> None:
    """A batch of two texts, of which the second is shorter by `padding`, and padded on the left."""
    llm, reference = model(name)
    ids = torch.cat([drawn_ids(128, LENGTH, seed) for seed in (4, 5)])
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    place = Place.of(mask)
    # What hides a key in float64 is minus infinity in float32, which eager attention takes its
    # softmax in: a query that sees nothing, as padding on the left does, is NaN in float64. Before,
    # there is an error (transformers 4.40.1: "cannot be converted to type float without overflow").
    llm = llm if padding or BEFORE_4_45 else llm.double()
    with torch.no_grad():
        observed = llm(input_ids=ids, attention_mask=mask, position_ids=place.positions).logits
    decoder = reference.decoder()
    expected = decoder.logits(decoder.embed(ids), place)
    assert relative_rms(observed[place.mask], expected[place.mask]) < SEMANTICS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shapes_are_those_of_the_model(name: str) -> None:
    llm, _ = model(name)
    # The order is that of computation in one, that of construction in the other.
    assert parameter_shapes(CONFIGS[name]) == {
        # transformers 5 has a name of its own for this head, not the checkpoint's.
        ("embed_out.weight" if "neox" in str(type(llm)) and path == "lm_head.weight" else path): (
            tuple(parameter.shape)
        )
        for path, parameter in llm.named_parameters()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_the_library_saves_means_the_same(name: str) -> None:
    """Releases move fields: rotary settings into tables, windows into lists of layers' types."""
    model(name)
    config = CONFIGS[name]
    saved = json.loads(library_config(config).to_json_string())
    assert architecture_of(saved) == architecture_of(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_windows_are_counted_alike(name: str) -> None:
    llm, reference = model(name)
    assert library_windows(llm, CONFIGS[name]) == reference.architecture.windows


PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "hidden_size": 2560, "num_attention_heads": 8, "sliding_window": 1024, "head_dim": 256,
    },
    "phi3-longrope-long": {
        "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
        "sliding_window": 2047,
        "rope_scaling": {**LONG_ROPE, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_windows_are_counted_alike_at_the_published_width(name: str) -> None:
    llm, _ = model(name)
    config = {**CONFIGS[name], **PUBLISHED[name]}
    assert library_windows(llm, config) == architecture_of(config).windows


@pytest.mark.parametrize("name", CONFIGS)
def test_other_shapes_of_a_config_agree(name: str) -> None:
    llm, _ = model(name)
    shared = 3 if "num_key_value_heads" in CONFIGS[name] else 6
    config = in_shape(CONFIGS[name], heads=6, key_value_heads=shared, layers=3)
    config["torch_dtype"] = "bfloat16"  # as published: nothing may be rounded to it
    llm = untrained(type(llm), config, "eager", seed=7)
    decoder = Reference.of(llm, config).decoder()
    ids = drawn_ids(128, LENGTH, seed=8)
    expected = decoder.logits(decoder.embed(ids), Place.of(torch.ones_like(ids)))
    with torch.no_grad():
        assert relative_rms(llm(input_ids=ids).logits, expected) < SEMANTICS


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_agree_and_round_alike(name: str) -> None:
    llm, reference = model(name)
    ids = drawn_ids(128, 2 * LENGTH, seed=6)
    place, embedded = Place.of(torch.ones_like(ids)), reference.decoder().embed(ids)

    def run() -> Any:
        return llm(input_ids=ids)

    exact = module_errors(llm, reference, run, embedded, place)
    norms = len(reference.decoder().norms())
    assert len(exact) == norms + 4 * len(("attention", "mlp", "layer"))
    assert first_outside(exact, SEMANTICS) is None
    cast_parameters(llm, torch.bfloat16)
    rounded = module_errors(llm, reference, run, embedded, place, BFLOAT16)
    assert first_outside(rounded, MODULE_RATIO) is None
    growth = error_growth(llm, reference, run, embedded, place, BFLOAT16)
    assert [row["layer"].rpartition(".")[2] for row in growth] == ["0", "1", "2", "3"]
    half, truth = reference.decoder(BFLOAT16), reference.decoder()
    with torch.no_grad():
        observed = run().logits
    ratio = rounding_ratio(
        observed, truth.logits(embedded, place), half.logits(half.embed(ids), place)
    )
    assert ratio <= ROUNDING_RATIO


@pytest.mark.parametrize("name", CONFIGS)
def test_a_streamed_model_agrees(name: str) -> None:
    """As at the published size: a layer's weights at a time, by the names of the checkpoint."""
    config = deepcopy(CONFIGS[name])
    llm, reference = model(name)
    shapes = parameter_shapes(config)
    seeded = SeededWeights(
        shapes,
        seed=0,
        vocabulary=config["vocab_size"],
        tied=reference.architecture.tied,
        centre=norm_centre(config),
    )
    weights = OneLayer(shapes, seeded.write, torch.bfloat16)
    # Within every window: releases differ at its edge, which is looked at elsewhere.
    ids = drawn_ids(128, 8 if any(reference.architecture.windows) else LENGTH, seed=1)
    found = list(full_size_parity(type(llm), config, weights, ids, attention="eager"))
    assert max(one.value for one in found if one.gate == "semantics") <= SEMANTICS
    modules = len(reference.decoder().norms()) - 1 + 4 * len(("attention", "mlp", "layer"))
    around = ("embedding", "final norm", "head")
    assert len([one for one in found if one.gate == "ratio"]) == len(around) + modules
    if len(ids[0]) == LENGTH:
        assert max(one.value for one in found if one.gate == "ratio") <= MODULE_RATIO
