"""What the reference makes of published configs, of odd ones, and whether transformers agrees with
it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from conformance.hub import known_recipes
from conformance.hub.language_model import decoder_config
from conformance.oracle import Decoder, InvalidConfig, NoReference, Place, architecture_of
from conformance.oracle.architecture import LinearScaling, LongRope, Rotary, YarnScaling
from conformance.oracle.families import _FAMILIES
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
    published = decoder_config(known_recipes()[hub_id].config)
    architecture = architecture_of(published)
    assert architecture.layers == published["num_hidden_layers"]
    # NeMo's heads are narrower together than its hidden width, which the config says.
    width = published.get("head_dim") or published["hidden_size"] // architecture.heads
    assert architecture.head_dimension == width


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
            "no reference decoder for model type 'mamba'; there are some for gemma, gemma2, "
            "gemma3_text, gpt_neox, llama, mistral, olmo2, phi, phi3, qwen2, qwen3, stablelm",
        ),
        ({**PHI, "qk_layernorm": True}, "`qk_layernorm` is true"),
        ({"hidden_act": "relu6"}, "`hidden_act` is 'relu6'; the reference computes"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "the rope type is 'dynamic'; the reference computes default",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale_all_dim": 1.0}},
            "the rope type is 'yarn' with `mscale_all_dim`",
        ),
        (
            {"model_type": "stablelm", "qk_layernorm": True},
            "`qk_layernorm` is true: each head then has a norm of its own",
        ),
        (
            {"model_type": "gemma", "use_bidirectional_attention": True},
            "`use_bidirectional_attention` is true; the reference is causal",
        ),
        (
            {
                "model_type": "gemma2",
                "layer_types": ["sliding_attention", "linear_attention"],
            },
            "`layer_types` holds 'linear_attention'; the reference computes full_attention",
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
        (
            {"model_type": "gemma2", "head_dim": 12, "layer_types": ["full_attention"]},
            "`layer_types` has 1 entries, but should have one for each of the 2 layers",
        ),
        (
            {
                "model_type": "phi3",
                "rope_scaling": {"type": "su", "short_factor": [1.0] * 6, "long_factor": [1.0]},
            },
            "`long_factor` has 1 entries, but should have one for each of the 6 frequencies",
        ),
    ],
)
def test_impossible_configs_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        architecture_of({**LLAMA, **changes})


def test_missing_fields_are_named() -> None:
    with pytest.raises(InvalidConfig, match="'llama' has no 'hidden_size'"):
        architecture_of({key: value for key, value in LLAMA.items() if key != "hidden_size"})


class TestFamilies:
    """What the reference makes of the configs as published, in the fields that matter here."""

    @pytest.mark.parametrize(
        ("fields", "activation"),
        [
            ({}, "gelu_tanh"),
            ({"hidden_act": "gelu"}, "gelu_tanh"),
            ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_tanh"),
            ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
            ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh"),
            ({"hidden_act": "gelu", "hidden_activation": "silu"}, "silu"),
        ],
    )
    def test_gemmas_gelu_is_the_tanh_approximation(
        self, fields: dict[str, Any], activation: str
    ) -> None:
        config = {"model_type": "gemma", **TINY, "num_key_value_heads": 1, **fields}
        assert architecture_of(config).activation == activation

    def test_gemma_2_9b_by_its_paper(self) -> None:
        """Tables 1 and 2 of https://arxiv.org/abs/2408.00118, and its section 2."""
        architecture = architecture_of({
            "model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "query_pre_attn_scalar": 256, "sliding_window": 4096,
        })  # fmt: skip
        assert architecture.windows == (4096, None) * 21
        assert architecture.attention_scale == 1 / 16
        assert (architecture.attention_softcap, architecture.logits_softcap) == (50.0, 30.0)
        assert architecture.embedding_scale == 3584**0.5
        assert architecture.tied

    def test_a_cap_of_null_is_none(self) -> None:
        architecture = architecture_of(
            {"model_type": "gemma2", **TINY, "attn_logit_softcapping": None}
        )
        assert (architecture.attention_softcap, architecture.logits_softcap) == (None, 30.0)

    @pytest.mark.parametrize(
        "rope",
        [
            {
                "rope_theta": 1e6, "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
        ],
        ids=["before transformers 5", "since"],
    )  # fmt: skip
    def test_gemma_3_4b_by_its_paper(self, rope: dict[str, Any]) -> None:
        """Sections 2 and 2.1 of https://arxiv.org/abs/2503.19786: five local layers with a window
        of 1,024 and a theta of ten thousand for each global one, which has a million, stretched
        eight times."""
        architecture = architecture_of({
            "model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "sliding_window": 1024, **rope,
        })  # fmt: skip
        assert architecture.windows == ((1024,) * 5 + (None,)) * 5 + (1024,) * 4
        near, far = Rotary(1e4, 256), Rotary(1e6, 256, LinearScaling(8.0))
        assert architecture.layer_rotaries == ((near,) * 5 + (far,)) * 5 + (near,) * 4
        assert architecture.attention_softcap is architecture.logits_softcap is None

    def test_layer_types_go_before_the_pattern(self) -> None:
        architecture = architecture_of({
            "model_type": "gemma3_text", **TINY, "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"],
        })  # fmt: skip
        assert architecture.windows == (None, 5)
        assert [rotary.theta for rotary in architecture.layer_rotaries] == [1e6, 1e4]

    @pytest.mark.parametrize(
        "settings",
        [
            {"rope_scaling": {"type": "su"}},
            {"rope_scaling": {"type": "longrope"}},
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        ],
        ids=["first config", "before transformers 5", "since"],
    )
    def test_phi_3_mini_128k_by_its_config(self, settings: dict[str, dict[str, Any]]) -> None:
        """32 times as many positions as it was first trained on, 4,096: √(1 + 5/12)."""
        ((key, table),) = settings.items()
        factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
        architecture = architecture_of({
            "model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "sliding_window": 262_144,
            "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
            key: {**table, **factors},
        })  # fmt: skip
        scaling = architecture.rotary.scaling
        assert isinstance(scaling, LongRope)
        assert (scaling.short[0], scaling.long[0], scaling.original_positions) == (1.0, 2.0, 4096)
        assert scaling.amplitude == pytest.approx((17 / 12) ** 0.5)

    def test_an_attention_factor_goes_before_the_rule(self) -> None:
        table = {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
        config = {"model_type": "phi3", **TINY, "original_max_position_embeddings": 64}
        for more, amplitude in (({}, 1.5**0.5), ({"attention_factor": 1.25}, 1.25)):
            architecture = architecture_of({**config, "rope_scaling": {**table, **more}})
            # 512 positions are eight times 64, and ln 8 is half of ln 64.
            assert architecture.rotary.amplitude == pytest.approx(amplitude)

    def test_qwen3_over_131072_positions_by_its_card(self) -> None:
        """https://huggingface.co/Qwen/Qwen3-8B#processing-long-texts, and the rule for the
        temperature in section 3.4 of https://arxiv.org/abs/2309.00071: 0.1 ln 4 + 1."""
        architecture = architecture_of({
            "model_type": "qwen3", **TINY, "num_key_value_heads": 2, "rope_theta": 1e6,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768,
            },
        })  # fmt: skip
        scaling = architecture.rotary.scaling
        assert isinstance(scaling, YarnScaling)
        assert (scaling.factor, scaling.original_positions) == (4.0, 32_768)
        assert (scaling.most_turns, scaling.least_turns) == (32.0, 1.0)
        assert scaling.amplitude == pytest.approx(1.1386294)

    @pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
    def test_qwens_window_must_be_asked_for(self, model_type: str) -> None:
        config = {
            "model_type": model_type, **TINY, "num_key_value_heads": 2, "sliding_window": 9,
            "max_window_layers": 1,
        }  # fmt: skip
        assert architecture_of(config).windows == (None, None)
        assert architecture_of({**config, "use_sliding_window": True}).windows == (None, 9)

    @pytest.mark.parametrize(
        "settings",
        [
            {"rotary_pct": 0.5, "rotary_emb_base": 5e5},
            {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 5e5}},
        ],
        ids=["before transformers 5", "since"],
    )
    def test_gpt_neox_has_names_of_its_own_for_rotary(self, settings: dict[str, Any]) -> None:
        rotary = architecture_of({"model_type": "gpt_neox", **TINY, **settings}).rotary
        assert (rotary.theta, rotary.dimensions) == (5e5, 6)

    def test_mistral_nemos_heads_are_narrower_than_a_share(self) -> None:
        """https://huggingface.co/mistralai/Mistral-Nemo-Base-2407/blob/main/config.json"""
        architecture = architecture_of({
            "model_type": "mistral", "hidden_size": 5120, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "sliding_window": None, "rope_theta": 1e6,
        })  # fmt: skip
        assert (architecture.head_dimension, architecture.rotary.dimensions) == (128, 128)
        assert architecture.attention_scale == pytest.approx(128**-0.5)
        assert set(architecture.windows) == {None}


@pytest.mark.parametrize("model_type", sorted(_FAMILIES))
def test_a_silent_config_means_what_transformers_takes(model_type: str) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no model type {model_type!r}")
    shape = {"hidden_size": 256, "num_attention_heads": 32, "num_hidden_layers": 1}
    library = transformers.AutoConfig.for_model(model_type, **shape)
    architecture = architecture_of({"model_type": model_type, **shape})
    assert architecture.positions == library.max_position_embeddings
    assert architecture.key_value_heads == (getattr(library, "num_key_value_heads", None) or 32)
    slides = getattr(library, "use_sliding_window", True)
    assert architecture.windows == (getattr(library, "sliding_window", None) if slides else None,)
    eps = getattr(library, "layer_norm_eps", None) or library.rms_norm_eps
    assert architecture.norm.eps == eps
    assert architecture.head_dimension == (getattr(library, "head_dim", None) or 8)
    assert architecture.tied == library.tie_word_embeddings


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
