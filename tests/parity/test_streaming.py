"""The streamed run, at sizes that take no time: what it holds in memory, and which module it
blames."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRMSNorm

from conformance.assertions import ClauseFailure, NotApplicable, listening
from conformance.errors import CannotAssess
from conformance.hub import known_recipes
from conformance.oracle.shapes import parameter_shapes
from conformance.parity.full_size import full_size_parity
from conformance.parity.gates import MODULE_RATIO, SEMANTICS
from conformance.parity.probes import drawn_ids
from conformance.parity.streaming import OneLayer, SeededWeights, on_meta
from conformance.run.session import _check_is_of
from conformance.subject.checkpoint import Checkpoint
from conformance.suite.test_scale import (
    test_every_layer_agrees_at_the_published_size as scl_02,
)
from conformance.suite.test_scale import (
    test_the_published_size_is_the_family_s as scl_01,
)
from tests.oracle.test_families import LLAMA, MISTRAL, PHI

LAYER = "model.layers.1"
CLASSES = {
    "llama": LlamaForCausalLM,
    "mistral": transformers.MistralForCausalLM,
    "phi": transformers.PhiForCausalLM,
}
FAMILIES = [pytest.param(config, id=str(config["model_type"])) for config in (LLAMA, MISTRAL, PHI)]


def seeded(config: dict[str, Any], seed: int = 0) -> SeededWeights:
    return SeededWeights(
        parameter_shapes(config), seed=seed, vocabulary=config["vocab_size"], tied=False
    )


def tensor(
    weights: SeededWeights, name: str, *shape: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    out = torch.empty(shape, dtype=dtype)
    weights.write(name, out)
    return out


WIDE = {**LLAMA, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 3000}
WIDE_SHAPES = parameter_shapes(WIDE)


class TestSeededWeights:
    def test_a_tensor_is_its_name_s_and_seed_s(self) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        once = tensor(seeded(WIDE), name, *WIDE_SHAPES[name])
        again = seeded(WIDE)
        tensor(again, "lm_head.weight", *WIDE_SHAPES["lm_head.weight"])
        assert torch.equal(tensor(again, name, *WIDE_SHAPES[name]), once)
        assert not torch.equal(tensor(seeded(WIDE, seed=1), name, *WIDE_SHAPES[name]), once)
        assert not torch.equal(tensor(again, name.replace("up", "gate"), *WIDE_SHAPES[name]), once)

    @pytest.mark.parametrize(
        ("name", "std"),
        [
            ("model.layers.0.self_attn.q_proj.weight", 2 * 512**-0.5),
            ("model.layers.1.self_attn.v_proj.weight", 512**-0.5),
            ("model.layers.1.mlp.down_proj.weight", 1024**-0.5),
            ("model.embed_tokens.weight", 1.0),
            ("lm_head.weight", 512**-0.5),
        ],
    )
    def test_matrices_spread_as_the_probe_s(self, name: str, std: float) -> None:
        drawn = tensor(seeded(WIDE), name, *WIDE_SHAPES[name])
        assert float(drawn.pow(2).mean().sqrt()) == pytest.approx(std, rel=0.05)
        # No row is another's copy, and none is like another but by what the vocabulary's rows
        # share.
        likeness = (
            torch.nn.functional.normalize(drawn[:64]) @ torch.nn.functional.normalize(drawn[-64:]).T
        )
        shared = 0.25 if WIDE_SHAPES[name][0] == WIDE["vocab_size"] else 0.0
        assert float(likeness.mean()) == pytest.approx(shared, abs=0.05)
        assert float(likeness.abs().max()) < 0.6

    def test_norms_spread_around_one(self) -> None:
        drawn = tensor(seeded(WIDE), "model.norm.weight", 512)
        assert 0.7 <= float(drawn.min()) < 0.75
        assert 1.25 < float(drawn.max()) <= 1.3

    def test_a_block_is_run_through_again_and_again(self) -> None:
        shapes = {"a.weight": (5_000, 1_000)}
        drawn = tensor(
            SeededWeights(shapes, seed=0, vocabulary=7, tied=False), "a.weight", 5_000, 1_000
        )
        assert float(drawn.std()) == pytest.approx(1_000**-0.5, rel=0.01)
        assert drawn.unique(dim=0).shape[0] == 5_000


class TestOneLayer:
    def test_the_layer_asked_for_last_is_kept(self) -> None:
        written: list[str] = []

        def write(name: str, out: torch.Tensor) -> None:
            written.append(name)
            out.zero_()

        weights = OneLayer(parameter_shapes(LLAMA), write, torch.bfloat16)
        first = [name for name in weights if ".0." in name]
        for name in [*first, *first]:
            assert weights[name].shape == weights.shapes[name]
        assert weights.held == tuple(first)
        assert written == first
        _ = weights["model.layers.1.mlp.up_proj.weight"]
        assert weights.held == ("model.layers.1.mlp.up_proj.weight",)
        _ = weights["lm_head.weight"], weights["model.norm.weight"]
        assert weights.held == ("lm_head.weight", "model.norm.weight")

    def test_memory_is_that_of_one_layer(self) -> None:
        made: list[weakref.ref[torch.Tensor]] = []
        alive: list[int] = []

        def write(name: str, out: torch.Tensor) -> None:
            made.append(weakref.ref(out))
            alive.append(
                len({id(tensor) for reference in made if (tensor := reference()) is not None})
            )
            source.write(name, out)

        config = {**LLAMA, "num_hidden_layers": 6}
        source, shapes = seeded(config), parameter_shapes(config)
        run = full_size_parity(
            LlamaForCausalLM, config, OneLayer(shapes, write, torch.bfloat16), drawn_ids(64, 16,
            0), attention="sdpa"
        )  # fmt: skip
        assert len(list(run)) > 6 * 10
        assert max(alive) <= sum(name.startswith("model.layers.0.") for name in shapes)
        assert len(alive) == len(shapes), "a tensor was made more than once, or never"


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sound_class_is_within_both_gates(config: dict[str, Any], dtype: torch.dtype) -> None:
    weights = OneLayer(parameter_shapes(config), seeded(config).write, dtype)
    model_class = CLASSES[config["model_type"]]
    found = list(
        full_size_parity(model_class, config, weights, drawn_ids(64, 48, 1), attention="eager")
    )
    assert max(one.value for one in found if one.gate == "semantics") <= SEMANTICS
    assert max(one.value for one in found if one.gate == "ratio") <= MODULE_RATIO
    modules = 4 if config is PHI else 5
    assert len([one for one in found if one.gate == "ratio"]) == 3 + 2 * modules
    assert len([one for one in found if one.what == "input"]) == 2 * (modules - 1)


@pytest.mark.parametrize(
    "hub_id", sorted(name for name, one in known_recipes().items() if one.parameters is not None)
)
def test_the_family_s_table_is_the_published_size(hub_id: str) -> None:
    recipe = known_recipes()[hub_id]
    shapes = parameter_shapes(recipe.config)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == recipe.parameters


@pytest.mark.parametrize(
    "config", [*FAMILIES, {**LLAMA, "tie_word_embeddings": True}, {**LLAMA, "attention_bias": True}]
)
def test_names_and_shapes_are_the_library_s(config: dict[str, Any]) -> None:
    llm = on_meta(CLASSES[config["model_type"]], config, "eager")
    assert {name: tuple(value.shape) for name, value in llm.named_parameters()} == parameter_shapes(
        config
    )
    assert all(value.is_meta for value in llm.parameters())
    buffers = list(llm.buffers())
    assert not any(value.is_meta for value in buffers)
    # Every layer's tables are the same ones, where each layer has some.
    assert len({value.data_ptr() for value in buffers}) <= 3


def subject(model_class: Any, config: dict[str, Any] = LLAMA, **changed: Any) -> Any:
    llm = on_meta(model_class, config, "sdpa")
    recipe = SimpleNamespace(config=config, parameters=None, hub_id="an/id")
    told = {
        "recipe": recipe,
        "real_checkpoint": None,
        "seed": 0,
        "announce": lambda step: None,
        **changed,
    }
    return SimpleNamespace(
        training=SimpleNamespace(llm=llm, half_precision_dtype=torch.bfloat16), **told
    )


def planted(plant: Callable[[Any], None]) -> type:
    class Planted(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            plant(self)

    return Planted


def configured(**changes: Any) -> type:
    class Configured(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            config = deepcopy(config)
            for name, value in changes.items():
                setattr(config, name, value)
            super().__init__(config)

    return Configured


def epsilon_tenfold(path: str) -> Callable[[Any], None]:
    def plant(llm: Any) -> None:
        llm.get_submodule(path).variance_epsilon *= 10

    return plant


def scale_off(llm: Any) -> None:
    for layer in llm.model.layers:
        layer.self_attn.scaling = layer.self_attn.head_dim**-0.5 * 1.02
        # Before transformers 4.48 the scale is no attribute: queries carry it as well.
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, args, out: out if hasattr(llm.model, "rotary_emb") else out * 1.02
        )


def louder(path: str) -> Callable[[Any], None]:
    return lambda llm: llm.get_submodule(path).register_forward_hook(
        lambda module, args, out: out * 1.001
    )


def residual_lost(llm: Any) -> None:
    norm = llm.get_submodule(f"{LAYER}.post_attention_layernorm")
    norm.register_forward_pre_hook(lambda module, args: (args[0] * 0.99,))


class RoundedNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        square = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(square + self.variance_epsilon))


def rounded_norm(llm: Any) -> None:
    llm.get_submodule(f"{LAYER}.input_layernorm").__class__ = RoundedNorm


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (epsilon_tenfold("model.norm"), "the output of `model.norm` differs"),
        (
            epsilon_tenfold(f"{LAYER}.input_layernorm"),
            f"the output of `{LAYER}.input_layernorm` differs",
        ),
        (scale_off, "the output of `model.layers.0.self_attn` differs"),
        (louder(f"{LAYER}.mlp.down_proj"), f"the output of `{LAYER}.mlp` differs"),
        (louder(f"{LAYER}.self_attn.k_proj"), f"the output of `{LAYER}.self_attn` differs"),
        (residual_lost, f"the input of `{LAYER}.post_attention_layernorm` differs"),
        (louder("model.embed_tokens"), "the output of `model.embed_tokens` differs"),
        (louder("model.norm"), "the output of `model.norm` differs"),
        (louder("lm_head"), "the output of `lm_head` differs"),
        (rounded_norm, f"the output of `{LAYER}.input_layernorm`, in torch.bfloat16, is off by"),
    ],
)
def test_a_defect_is_found_in_its_module(plant: Callable[[Any], None], told: str) -> None:
    with pytest.raises(ClauseFailure) as failure:
        scl_02(subject(planted(plant)))
    assert told in str(failure.value)
    assert failure.value.evidence["value"] > failure.value.evidence["bound"]
    assert failure.value.evidence["module"] in told


def test_layers_are_announced_and_numbers_kept() -> None:
    steps: list[str] = []
    with listening() as heard:
        scl_02(subject(LlamaForCausalLM, announce=steps.append))
    assert steps == [
        "SCL-02, embedding, final norm and head",
        "SCL-02, layer 0 of 2",
        "SCL-02, layer 1 of 2",
    ]
    found = heard["measured"]
    assert found["full-size semantics"]["measured"] == 3 + 2 * (5 + 4)
    assert found["full-size module ratio"]["measured"] == 3 + 2 * 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attention_bias": True}, "4 parameters have another name or shape"),
        ({"tie_word_embeddings": True}, "`lm_head.weight` is not there, but should be of shape "
            "(64, 48)"),
        ({"vocab_size": 128}, "`model.embed_tokens.weight` is of shape (128, 48), but should be "
            "of shape (64, 48)"),
        ({"num_hidden_layers": 1}, "is not there, but should be of shape"),
        ({"num_key_value_heads": 1}, "k_proj.weight` is of shape (12, 48), but should be of shape "
            "(48, 48)"),
    ],
)  # fmt: skip
def test_another_size_is_told(changes: dict[str, Any], told: str) -> None:
    scl_01(subject(LlamaForCausalLM))
    with pytest.raises(ClauseFailure) as failure:
        scl_01(subject(configured(**changes)))
    assert told in str(failure.value).replace("8 parameters", "4 parameters")


def test_another_count_than_the_published_is_told() -> None:
    judged = subject(LlamaForCausalLM)
    judged.recipe.parameters = 7_000_000_000
    with pytest.raises(
        ClauseFailure, match=r"the model has 47,\d{3} parameters, but should be 7,000,000,000"
    ):
        scl_01(judged)


def test_a_family_without_a_reference_is_not_judged() -> None:
    judged = subject(LlamaForCausalLM)
    judged.recipe.config = {**LLAMA, "model_type": "mamba"}
    for clause in (scl_01, scl_02):
        with pytest.raises(NotApplicable, match="no reference decoder for model type 'mamba'"):
            clause(judged)


def saved(
    folder: Path, config: dict[str, Any] = LLAMA, /, **changed: torch.Tensor | None
) -> Checkpoint:
    shapes, weights = parameter_shapes(config), seeded(config)
    tensors = {name: tensor(weights, name, *shape) for name, shape in shapes.items()}
    for name, value in changed.items():
        tensors[name] = value  # type: ignore[assignment]
    save_file(
        {name: value for name, value in tensors.items() if value is not None},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


def test_a_checkpoint_is_read_in_place_of_seeded_weights(tmp_path: Path) -> None:
    """One of another size than the published: a fine-tuned one has its own vocabulary."""
    scl_02(subject(LlamaForCausalLM, real_checkpoint=saved(tmp_path, {**LLAMA, "vocab_size": 80})))


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.up_proj.weight"
    broken = saved(tmp_path, **{name: torch.full(parameter_shapes(LLAMA)[name], float("nan"))})
    with pytest.raises(
        ClauseFailure, match=f"`{LAYER}.mlp` differs .* `{name}` holds NaN or infinity"
    ):
        scl_02(subject(LlamaForCausalLM, real_checkpoint=broken))


RECIPE: Any = SimpleNamespace(config=LLAMA, hub_id="an/id")


def test_a_checkpoint_of_this_model_is_taken(tmp_path: Path) -> None:
    _check_is_of(
        RECIPE, saved(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    )


@pytest.mark.parametrize(
    ("config", "changed", "told"),
    [
        (MISTRAL, {}, "is a checkpoint of model type 'mistral', and an/id is of 'llama'"),
        (
            LLAMA,
            {"model.norm.weight": None},
            "`model.norm.weight` should be of shape (48,), and is missing",
        ),
        (
            LLAMA,
            {"lm_head.weight": torch.ones(65, 48)},
            "`lm_head.weight` should be of shape (64, 48), and is of (65, 48)",
        ),
    ],
)
def test_a_checkpoint_that_contradicts_is_refused(
    tmp_path: Path, config: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(CannotAssess) as refusal:
        _check_is_of(RECIPE, saved(tmp_path, config, **changed))
    assert told in str(refusal.value)
