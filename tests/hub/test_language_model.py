"""The language model inside a vision-language checkpoint, taken out of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from conformance.hub.language_model import (
    decoder_config,
    extract,
    is_nested,
    own_name,
    put_back,
    stored_name,
)

INSIDE = "model.text_model"
HEAD, TOWER = "lm_head.weight", "model.vision_model.norm.weight"


def test_names_go_both_ways() -> None:
    for stored, own in (
        ("model.text_model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.vision_model.norm.weight", None),
        ("model.text_model_of_another.weight", None),
    ):
        assert own_name(stored, INSIDE) == own
        assert own is None or stored_name(own, INSIDE) == stored
    assert stored_name("model.norm.weight", None) == "model.norm.weight"


def test_a_language_model_that_is_stored_whole_has_its_head_beside_it() -> None:
    inside = "language_model.model"
    for stored, own in (
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.head.weight", None),
    ):
        assert own_name(stored, inside) == own
        assert own is None or stored_name(own, inside) == stored


def test_a_config_of_a_language_model_alone_is_itself() -> None:
    plain = {"model_type": "mistral", "torch_dtype": "bfloat16"}
    assert decoder_config(plain) == plain
    nested = {"model_type": "idefics2", "torch_dtype": "bfloat16", "text_config": {"a": 1}}
    assert decoder_config(nested) == {"torch_dtype": "bfloat16", "a": 1}


def test_what_is_extracted_is_the_language_models(tmp_path: Path) -> None:
    snapshot, own = tmp_path / "snapshot", tmp_path / "own"
    snapshot.mkdir()
    config = {"model_type": "idefics2", "text_config": {"model_type": "mistral"}}
    (snapshot / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (snapshot / "tokenizer.json").write_text("{}", encoding="utf-8")
    tensors = {
        "model.text_model.norm.weight": torch.ones(2),
        "model.vision_model.norm.weight": torch.zeros(2),
        "lm_head.weight": torch.ones(3, 2),
    }
    save_file(tensors, snapshot / "model-00001-of-00001.safetensors")
    assert is_nested(snapshot)
    extract(snapshot, INSIDE, own)
    assert not is_nested(own)
    found = load_file(own / "model.safetensors")
    assert sorted(found) == ["lm_head.weight", "model.norm.weight"]
    assert sorted(path.name for path in own.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_what_was_saved_alone_takes_its_place(tmp_path: Path) -> None:
    snapshot, own = tmp_path / "snapshot", tmp_path / "own"
    for folder in (snapshot, own):
        folder.mkdir()
    _write_config(snapshot, {"vocab_size": 3, "text_config": {"vocab_size": 3, "a": 1}})
    _write_config(own, {"vocab_size": 4})
    (own / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file({HEAD: torch.zeros(3, 2), TOWER: torch.ones(2)}, snapshot / "model.safetensors")
    save_file({HEAD: torch.ones(4, 2)}, own / "model-00001-of-00001.safetensors")
    put_back(snapshot, own, INSIDE)
    assert json.loads((snapshot / "config.json").read_text(encoding="utf-8")) == {
        "vocab_size": 4, "text_config": {"vocab_size": 4, "a": 1},
    }  # fmt: skip
    found = load_file(snapshot / "model.safetensors")
    assert found.keys() == {HEAD, TOWER}
    assert found[HEAD].shape == (4, 2)
    assert sorted(path.name for path in snapshot.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_what_was_saved_whole_is_the_checkpoint(tmp_path: Path) -> None:
    snapshot, own = tmp_path / "snapshot", tmp_path / "own"
    for folder in (snapshot, own):
        folder.mkdir()
        _write_config(folder, {"text_config": {}, "in": folder.name})
    save_file({HEAD: torch.zeros(3, 2)}, snapshot / "model-00001-of-00001.safetensors")
    save_file({HEAD: torch.ones(4, 2)}, own / "model.safetensors")
    put_back(snapshot, own, INSIDE)
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors"]
    assert "own" in (snapshot / "config.json").read_text(encoding="utf-8")


def _write_config(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
