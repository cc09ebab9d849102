"""What is said of a directory that holds no whole checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conformance.run.request import InvalidRequest, RunRequest
from conformance.subject.checkpoint import Checkpoint, InvalidCheckpoint

TENSORS = {"a.weight": torch.ones(2, 3), "b.bias": torch.ones(4)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint in two files."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for number, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"{number}.safetensors", metadata={"format": "pt"})
    weight_map = {name: f"{number}.safetensors" for number, name in enumerate(TENSORS)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_shapes_are_read_from_the_headers(folder: Path) -> None:
    assert Checkpoint(folder).shapes == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert Checkpoint(folder).config == {"model_type": "llama"}
    (folder / "model.safetensors.index.json").unlink()
    save_file(TENSORS, folder / "model.safetensors")
    assert set(Checkpoint(folder).shapes) == set(TENSORS)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "1.safetensors").unlink(), "1.safetensors` cannot be read: No "
            "such file"),
        (lambda folder: (folder / "1.safetensors").write_bytes(b"short"), "cut short in its "
            "header"),
        (lambda folder: (folder / "1.safetensors").write_bytes(b"\2" + bytes(7) + b"[]"),
        "cannot be "
            "understood"),
        (
            lambda folder: cut_short(folder / "1.safetensors"),
            "bytes, but its header describes",
        ),
        (
            lambda folder: save_file({"c": torch.ones(1)}, folder / "1.safetensors"),
            "lacks the tensor `b.bias`, which `model.safetensors.index.json` says it holds",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "has no `weight_map`"),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            "model.safetensors` cannot be read: No such file",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json` cannot be read: No such "
            "file"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json` holds no JSON "
            "object"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_told(folder: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(folder)
    with pytest.raises(InvalidCheckpoint) as error:
        _ = Checkpoint(folder).shapes, Checkpoint(folder).config
    assert told in str(error.value)
    with pytest.raises(InvalidRequest, match="holds no whole checkpoint"):
        RunRequest("it", profiles=("scale",), weights=str(folder))


def test_a_whole_checkpoint_is_taken(folder: Path) -> None:
    assert RunRequest("it", profiles=("scale",), weights=str(folder)).weights == str(folder)
