"""The store: whole snapshots, built once, whatever happens to the process that builds or to the
files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from conformance.hub import Hub, recipe_for
from conformance.hub import store as store_module
from conformance.hub.published import text_part

from .conftest import BUILT_IDS, MISTRAL, SnapshotOf

RECIPE = recipe_for(MISTRAL)
# Not more than a fork of this test process, which has torch loaded by the time it forks.
# A fork would inherit torch without its threads, and wait for them.
SPAWN = multiprocessing.get_context("spawn")


@pytest.mark.parametrize("hub_id", BUILT_IDS)
def test_a_snapshot_has_the_files_of_a_real_one(hub_id: str, snapshot_of: SnapshotOf) -> None:
    snapshot = snapshot_of(hub_id)
    recipe = recipe_for(hub_id)
    names = {path.name for path in snapshot.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    } <= names
    # Of some vocabularies transformers' own files are published alone, and a stand-in has no model.
    alone = recipe.tokenizer.layout in ("tekken-bpe", "llama3-bpe", "gemma-bpe")
    assert bool(names & {"tokenizer.model", "merges.txt"}) is not alone
    written = json.loads((snapshot / "generation_config.json").read_text())
    assert written == recipe.generation_config
    template = json.loads((snapshot / "tokenizer_config.json").read_text()).get("chat_template")
    assert template == (recipe.chat_template if recipe.tokenizer.ships_chat_template else None)
    config = json.loads((snapshot / "config.json").read_text())
    assert {key: config[key] for key in recipe.config if key not in recipe.probe} == {
        key: value for key, value in recipe.config.items() if key not in recipe.probe
    }
    index = json.loads((snapshot / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2
    large = text_part(recipe.probe_config())["vocab_size"] > 100_000
    assert sum(path.stat().st_size for path in snapshot.iterdir()) < (80e6 if large else 30e6)


def test_building_again_changes_nothing(hub: Hub) -> None:
    before = {path: path.stat().st_mtime_ns for path in hub.build(RECIPE).iterdir()}
    assert {path: path.stat().st_mtime_ns for path in hub.build(RECIPE).iterdir()} == before


def test_an_entry_that_is_there_needs_neither_torch_nor_tokenizer_packages(hub: Hub) -> None:
    expected = hub.build(RECIPE)
    program = """
import sys
heavy = "torch transformers safetensors tokenizers huggingface_hub mistral_common sentencepiece"
for name in heavy.split():
    sys.modules[name] = None
from pathlib import Path
from conformance.hub import Hub, recipe_for
print(Hub(Path(sys.argv[1])).build(recipe_for(sys.argv[2])))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(hub.root), MISTRAL],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add", "manifest", "no manifest"])
def test_a_damaged_entry_is_found_and_rebuilt(hub: Hub, tmp_path: Path, damage: str) -> None:
    whole = hub.build(RECIPE)
    own = Hub(tmp_path)
    shutil.copytree(whole.parent, tmp_path / whole.parent.parent.name / whole.parent.name)
    snapshot = own.root / whole.relative_to(hub.root)
    victim = snapshot / "model-00001-of-00002.safetensors"
    manifest = snapshot.parent / "manifest.json"
    for path in (victim, manifest):
        path.chmod(0o644)
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        os.truncate(victim, 1000)
    elif damage == "delete":
        victim.unlink()
    elif damage == "add":
        (snapshot / "stray.json").write_text("{}")
    elif damage == "manifest":
        manifest.write_text('{"files": {"config.json": 3}}')
    else:
        manifest.unlink()
    assert own.damaged() == [snapshot.parent]
    steps: list[str] = []
    assert own.build(RECIPE, on_progress=steps.append) == snapshot
    assert steps
    assert own.damaged() == []
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    assert [path.name for path in snapshot.parent.parent.iterdir()] == [snapshot.parent.name]


def test_entries_lists_what_is_built_and_passes_over_the_rest(hub: Hub, tmp_path: Path) -> None:
    hub.build(RECIPE)
    entry = next(entry for entry in hub.entries() if entry.hub_id == MISTRAL)
    assert (entry.digest, entry.path) == (RECIPE.digest(), hub.build(RECIPE))
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.iterdir())
    (tmp_path / "org--name" / "digest").mkdir(parents=True)
    (tmp_path / "org--name" / "digest" / "manifest.json").write_text("not JSON")
    assert Hub(tmp_path).entries() == []
    assert Hub(tmp_path / "absent").entries() == Hub(tmp_path / "absent").damaged() == []


def test_weights_that_were_left_out_are_made_without_tokenizer_packages(
    hub: Hub, tmp_path: Path
) -> None:
    whole = hub.build(RECIPE)
    light = Hub(tmp_path)
    snapshot = light.build(RECIPE, "later")
    assert not list(snapshot.glob("*.safetensors*"))
    assert [entry.has_weights for entry in light.entries()] == [False]
    assert light.build(RECIPE, "later") == snapshot, "there already"
    program = """
import sys
for name in ("mistral_common", "sentencepiece"):
    sys.modules[name] = None
from pathlib import Path
from conformance.hub import Hub, recipe_for
Hub(Path(sys.argv[1])).build(recipe_for(sys.argv[2]))
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path), MISTRAL], check=True)
    assert [entry.has_weights for entry in light.entries()] == [True]
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    assert light.build(RECIPE, "later") == snapshot, "more than was asked for serves"
    assert [entry.has_weights for entry in light.entries()] == [True]


def test_half_a_tokenizer_is_made_anew(hub: Hub, tmp_path: Path) -> None:
    light = Hub(tmp_path)
    snapshot = light.build(RECIPE, "later")
    (snapshot / "tokenizer.model").chmod(0o644)
    (snapshot / "tokenizer.model").write_bytes(b"half")
    light.build(RECIPE)
    whole = hub.build(RECIPE)
    assert (snapshot / "tokenizer.model").read_bytes() == (whole / "tokenizer.model").read_bytes()


def build_and_hang(root: Path, started: Event) -> None:
    def hang(line: str) -> None:
        started.set()
        time.sleep(600)

    Hub(root).build(RECIPE, on_progress=hang)


def test_a_killed_build_leaves_no_lock_and_its_rest_is_cleared(hub: Hub, tmp_path: Path) -> None:
    hub.build(RECIPE)
    started = SPAWN.Event()
    process = SPAWN.Process(target=build_and_hang, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    home = tmp_path / MISTRAL.replace("/", "--")
    assert list(home.glob(".building-*"))
    process.kill()
    process.join()
    assert Hub(tmp_path).entries() == []
    snapshot = Hub(tmp_path).build(RECIPE)
    assert [path.name for path in home.iterdir()] == [snapshot.parent.name]


def build_and_tell(root: Path, results: SimpleQueue[tuple[Path, int]]) -> None:
    steps: list[str] = []
    snapshot = Hub(root).build(RECIPE, on_progress=steps.append)
    results.put((snapshot, len(steps)))


@pytest.mark.slow
def test_several_processes_build_the_same_entry_once(hub: Hub, tmp_path: Path) -> None:
    hub.build(RECIPE)
    results: SimpleQueue[tuple[Path, int]] = SPAWN.SimpleQueue()
    processes = [SPAWN.Process(target=build_and_tell, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert len({path for path, _ in outcomes}) == 1
    assert sorted(bool(steps) for _, steps in outcomes) == [False, False, False, True]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no weights today")

    monkeypatch.setattr(store_module, "_write_weights", fail)
    with pytest.raises(RuntimeError, match="no weights today"):
        Hub(tmp_path).build(RECIPE)
    assert list((tmp_path / MISTRAL.replace("/", "--")).iterdir()) == []


def test_other_weights_are_refused(hub: Hub) -> None:
    with pytest.raises(ValueError, match="'probe'"):
        hub.build(RECIPE, weights="fullest")


def test_the_root_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFORMANCE_HUB", str(tmp_path))
    assert Hub().root == tmp_path
    monkeypatch.delenv("CONFORMANCE_HUB")
    assert Hub().root.name == "hub"
    assert "backbone-conformance" in str(Hub().root)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Hub().root == tmp_path / "backbone-conformance" / "hub"
