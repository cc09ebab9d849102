"""What the reference makes of published configs, of odd ones, and whether transformers agrees with
it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from conformance.hub import known_recipes
from conformance.oracle import Decoder, InvalidConfig, NoReference, Place, architecture_of
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS
from conformance.parity.probes import drawn_ids, untrained

TINY = {
    "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
}  # fmt: skip
LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    **TINY,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None}
PHI = {
    "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "rope_theta": 1e4,
    "partial_rotary_factor": 0.5, **TINY,
}  # fmt: skip


@pytest.mark.parametrize("hub_id", sorted(known_recipes()))
def test_every_recipe_has_a_reference(hub_id: str) -> None:
    published = known_recipes()[hub_id].config
    architecture = architecture_of(published)
    assert architecture.layers == published["num_hidden_layers"]
    assert architecture.heads * architecture.head_dimension == published["hidden_size"]


def test_mistral_by_its_paper() -> None:
    """Table 1 of https://arxiv.org/abs/2310.06825."""
    architecture = architecture_of(known_recipes()["mistralai/Mistral-7B-v0.1"].config)
    assert (architecture.hidden, architecture.layers, architecture.head_dimension) == (
        4096,
        32,
        128,
    )
    assert (architecture.heads, architecture.key_value_heads) == (32, 8)
    assert set(architecture.windows) == {4096}


def test_phi_rotates_part_of_each_head() -> None:
    assert architecture_of(known_recipes()["microsoft/phi-2"].config).rotary.dimensions == 32


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": None},
    ],
    ids=["before transformers 5", "since"],
)
def test_theta_is_read_where_it_stands(settings: dict[str, Any]) -> None:
    assert architecture_of({**LLAMA, **settings}).rotary.theta == 5e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "mamba"},
            "no reference decoder for model type 'mamba'; there are some for llama, mistral, phi",
        ),
        ({**PHI, "qk_layernorm": True}, "`qk_layernorm` is true"),
        ({"hidden_act": "relu6"}, "`hidden_act` is 'relu6'; the reference computes"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "the rope type is 'yarn'; the reference computes default",
        ),
    ],
)
def test_what_has_no_reference_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NoReference, match=message):
        architecture_of({**LLAMA, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_attention_heads": 5},
            "`num_attention_heads` is 5, but should divide `hidden_size`, 48",
        ),
        (
            {"num_key_value_heads": 3},
            "`num_key_value_heads` is 3, but should divide `num_attention_heads`, 4",
        ),
        (
            {"num_attention_heads": 16},
            "3 dimensions of each head are rotated, but should be even",
        ),
        (
            {"model_type": "mistral", "sliding_window": 0},
            "`sliding_window` is 0, but should be null or at least 1",
        ),
    ],
)
def test_impossible_configs_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        architecture_of({**LLAMA, **changes})


def test_missing_fields_are_named() -> None:
    with pytest.raises(InvalidConfig, match="'llama' has no 'hidden_size'"):
        architecture_of({key: value for key, value in LLAMA.items() if key != "hidden_size"})


@pytest.mark.parametrize("model_type", ["llama", "mistral", "phi"])
def test_a_silent_config_means_what_transformers_takes(model_type: str) -> None:
    library = transformers.AutoConfig.for_model(model_type)
    shape = {"hidden_size": 256, "num_attention_heads": 32, "num_hidden_layers": 1}
    architecture = architecture_of({"model_type": model_type, **shape})
    assert architecture.positions == library.max_position_embeddings
    assert architecture.key_value_heads == (library.num_key_value_heads or 32)
    assert architecture.windows == (getattr(library, "sliding_window", None),)
    eps = library.layer_norm_eps if model_type == "phi" else library.rms_norm_eps
    assert architecture.norm.eps == eps


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        ("LlamaForCausalLM", LLAMA),
        ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
        ("LlamaForCausalLM", {**LLAMA, "rope_theta": 1e6, "rms_norm_eps": 0.1}),
        (
            "LlamaForCausalLM",
            {**LLAMA, "rope_scaling": {"type": "linear", "factor": 3.0}},
        ),
        ("MistralForCausalLM", MISTRAL),
        ("PhiForCausalLM", PHI),
        (
            "PhiForCausalLM",
            {**PHI, "hidden_act": "gelu_pytorch_tanh", "partial_rotary_factor": 1.0},
        ),
    ],
)
def test_transformers_agrees(model_class: str, config: dict[str, Any]) -> None:
    llm = untrained(getattr(transformers, model_class), config, "eager", seed=3)
    ids = drawn_ids(TINY["vocab_size"], 70, seed=4)
    decoder = Decoder(architecture_of(config), llm.state_dict())
    with torch.no_grad():
        observed = llm(input_ids=ids).logits
    expected = decoder.logits(decoder.embed(ids), Place.of(torch.ones_like(ids)))
    assert relative_rms(observed, expected) < SEMANTICS
