"""Published files: what is read, and what is refused in one clear message."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.hub.published import UnusableFiles, read_published
from tests.published import CHATML, RANKS, write_published

HUB_ID = "someone/model"


def _edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / name).read_text(encoding="utf-8"))
    change(document)
    (folder / name).write_text(json.dumps(document), encoding="utf-8")


def _adapters(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def _gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def _slow_alone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n")


def _link_out(folder: Path) -> None:
    (folder / "merges.txt").symlink_to("/etc/hostname")


def _cut(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text[: len(text) // 2], encoding="utf-8")


def _set(name: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, name, lambda document: document.update(fields))


def _without(name: str, key: str) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, name, lambda document: document.pop(key))


def _not_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "adapters": (_adapters, r"holds adapters of org/base"),
    "gguf": (_gguf, r"model-q4.gguf"),
    "cut short": (_cut, r"config.json` is not JSON, cut short perhaps"),
    "a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        r"holds no JSON object, but \[1\]",
    ),
    "an encoder": (
        _set("config.json", architectures=["BertForMaskedLM"], model_type="bert"),
        r"BertForMaskedLM \(bert\), which is no decoder",
    ),
    "an encoder and a decoder": (
        _set("config.json", is_encoder_decoder=True),
        r"no decoder of text",
    ),
    "no model type": (_without("config.json", "model_type"), "has no `model_type`"),
    "quantised": (
        _set("config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        r"quantised checkpoint \(awq\)",
    ),
    "added tokens that are none": (
        _set("tokenizer.json", added_tokens=["<x>"]),
        r"tokenizer.json` has `added_tokens` that are no list of tables",
    ),
    "no architectures": (_without("config.json", "architectures"), "has no `architectures`"),
    "code of its own": (
        _set(
            "config.json",
            model_type="mine",
            architectures=["MineForCausalLM"],
            auto_map={"AutoModelForCausalLM": "modeling.Mine"},
        ),
        r"asks for code of its own.*--trust-remote-code",
    ),
    "fewer rows than tokens": (
        _set("config.json", vocab_size=RANKS - 1),
        rf"{RANKS} tokens, and .* {RANKS - 1} rows: they are of different models",
    ),
    "many more rows than tokens": (
        _set("config.json", vocab_size=256_000),
        rf"{RANKS + 3} tokens for the 256000 rows",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"has no tokenizer: no tokenizer.json",
    ),
    "a slow tokenizer alone": (_slow_alone, r"tokenizer.model and no tokenizer.json"),
    "a tokenizer of something else": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        r"has no `model.vocab`",
    ),
    "a link that leads out": (_link_out, r"is a link to `/etc/hostname`, outside of the folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_and_left_alone(case: str, tmp_path: Path) -> None:
    spoil, expected = BAD[case]
    folder = write_published(tmp_path / "model")
    spoil(folder)
    before = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UnusableFiles) as refused:
        read_published(folder, HUB_ID)
    assert re.search(expected, str(refused.value)), str(refused.value)
    assert {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableFiles, match="nowhere"):
        read_published(tmp_path / "nowhere", HUB_ID)


def test_a_snapshot_of_the_cache_consists_of_links(tmp_path: Path) -> None:
    blobs = write_published(tmp_path / "models--someone--model" / "blobs")
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert read_published(snapshot, HUB_ID).chat_template == CHATML


def test_the_default_of_several_templates_counts(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = write_published(tmp_path / "model")
    _edit(folder, "tokenizer_config.json", lambda document: document.update(chat_template=several))
    assert read_published(folder, HUB_ID).chat_template == "yes"
    (folder / "chat_template.jinja").write_text("a file of its own")
    assert read_published(folder, HUB_ID).chat_template == "a file of its own"


def test_trusted_code_is_taken(tmp_path: Path) -> None:
    code = {"AutoConfig": "modeling.Mine"}
    folder = write_published(tmp_path / "model", model_type="mine", auto_map=code)
    assert read_published(folder, HUB_ID, trust_remote_code=True).config["auto_map"]


def test_a_class_that_the_library_has_needs_no_code_of_its_own(tmp_path: Path) -> None:
    """Phi-3 and Falcon were published with code, which their classes followed."""
    folder = write_published(tmp_path / "model")
    _set("config.json", auto_map={"AutoModelForCausalLM": "modeling.Mine"})(folder)
    assert "auto_map" not in read_published(folder, HUB_ID).config


def test_links_to_weights_are_no_matter(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model")
    (folder / "model.safetensors").symlink_to("/etc/hostname")
    assert read_published(folder, HUB_ID).hub_id == HUB_ID


def test_a_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model")
    _not_text(folder)
    with pytest.raises(UnusableFiles, match=r"chat_template.jinja` cannot be read as text"):
        _ = read_published(folder, HUB_ID).chat_template
