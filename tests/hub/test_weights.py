"""Probe weights: exact in every dtype, seeded by name, at scales under which defects show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conformance.hub import recipe_for
from conformance.hub.published import text_part
from conformance.hub.weights import (
    checkpoint_shapes,
    distribution,
    norm_centre,
    probe_tensors,
)

from .conftest import BUILT_IDS, MISTRAL, SnapshotOf


def tensors_of(snapshot: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for shard in snapshot.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
    }


@pytest.mark.parametrize("hub_id", BUILT_IDS)
def test_every_value_is_exact_in_every_dtype(hub_id: str, snapshot_of: SnapshotOf) -> None:
    for name, tensor in tensors_of(snapshot_of(hub_id)).items():
        assert tensor.dtype == getattr(torch, recipe_for(hub_id).dtype)
        wide = tensor.float()
        assert torch.equal(wide, wide.bfloat16().float()), name
        assert torch.equal(wide, wide.half().float()), name
        assert wide.isfinite().all(), name
        assert wide.abs().max() > 0, name


@pytest.mark.parametrize("hub_id", BUILT_IDS)
def test_vocabulary_rows_share_a_mean_and_norms_spread_around_one(
    hub_id: str, snapshot_of: SnapshotOf
) -> None:
    config = text_part(recipe_for(hub_id).probe_config())
    rows, centre = config["vocab_size"], norm_centre(config)
    for name, tensor in tensors_of(snapshot_of(hub_id)).items():
        if "vision_model" in name or "connector" in name:
            continue  # No backbone has them.
        wide = tensor.float()
        if wide.dim() == 2 and wide.shape[0] == rows:
            shared = wide.mean(0).norm() / wide.norm(dim=1).median()
            assert 0.2 < shared < 0.8, (name, shared)
        elif wide.dim() == 1 and name.endswith("weight"):
            if wide.numel() < 48:
                continue  # The norms of a head have too few values to be spread.
            assert -0.31 < wide.min() - centre < -0.15, name
            assert 0.15 < wide.max() - centre < 0.31, name


def test_queries_and_keys_have_twice_the_fan_in_scale(snapshot_of: SnapshotOf) -> None:
    tensors = tensors_of(snapshot_of(MISTRAL))
    for name, gain in (("q_proj", 2.0), ("k_proj", 2.0), ("v_proj", 1.0), ("o_proj", 1.0)):
        weight = tensors[f"model.layers.0.self_attn.{name}.weight"].float()
        assert weight.std() * weight.shape[1] ** 0.5 == pytest.approx(gain, rel=0.1)


def test_norms_that_store_an_offset_spread_around_zero() -> None:
    options: dict[str, Any] = {"seed": "s", "vocabulary": 7, "tied": True, "dtype": "float32"}
    for model_type, least, most in (("gemma2", -0.3, 0.3), ("llama", 0.7, 1.3)):
        centre = norm_centre({"model_type": model_type})
        ((_, drawn),) = probe_tensors({"norm.weight": (256,)}, centre=centre, **options)
        assert least - 0.01 < float(drawn.min()) < least + 0.05
        assert most - 0.05 < float(drawn.max()) < most + 0.01


def test_a_head_called_embed_out_has_the_scale_of_a_head() -> None:
    for name, scale in (("gpt_neox.embed_in.weight", 1.0), ("embed_out.weight", 64**-0.5)):
        assert distribution(name, (100, 64), vocabulary=100, tied=False).scale == scale


def test_a_tensor_depends_on_its_name_and_not_on_the_order() -> None:
    recipe = recipe_for(MISTRAL)
    shapes = checkpoint_shapes(recipe.probe_config(), recipe.architecture)
    options: dict[str, Any] = {"seed": "s", "vocabulary": 32000, "tied": False, "dtype": "bfloat16"}
    small = {name: shape for name, shape in shapes.items() if "layers.1" in name}
    forwards = dict(probe_tensors(small, **options))
    backwards = dict(probe_tensors(dict(reversed(small.items())), **options))
    elsewhere = dict(probe_tensors(small, **{**options, "seed": "t"}))
    assert all(torch.equal(forwards[name], backwards[name]) for name in small)
    assert not any(torch.equal(forwards[name], elsewhere[name]) for name in small)


def test_checkpoints_of_different_hub_ids_differ(snapshot_of: SnapshotOf) -> None:
    pure, instruct = (
        tensors_of(snapshot_of(f"mistralai/Mistral-7B-{name}"))
        for name in ("v0.1", "Instruct-v0.1")
    )
    assert pure.keys() == instruct.keys()
    assert not any(torch.equal(pure[name], instruct[name]) for name in pure)


def test_a_tied_head_is_left_out() -> None:
    recipe = recipe_for(MISTRAL)
    config = {**recipe.probe_config(), "tie_word_embeddings": True}
    untied = checkpoint_shapes(recipe.probe_config(), recipe.architecture)
    assert untied.keys() - checkpoint_shapes(config, recipe.architecture).keys() == {
        "lm_head.weight"
    }


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="NoSuchForCausalLM"):
        checkpoint_shapes({"model_type": "mistral"}, "NoSuchForCausalLM")
