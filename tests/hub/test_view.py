"""The view: a private cache over a shared store that nothing here can change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.hub import HubView

from .conftest import MISTRAL, SnapshotOf


def digest_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_mounted_snapshot_has_the_layout_of_the_cache(
    view: HubView, snapshot_of: SnapshotOf
) -> None:
    snapshot = snapshot_of(MISTRAL)
    assert view.mounted() == []
    assert not view.is_mounted(MISTRAL)
    view.mount(MISTRAL, snapshot)
    view.mount(MISTRAL, snapshot)
    assert view.mounted() == [MISTRAL]
    assert view.is_mounted(MISTRAL)
    mounted = view.snapshot(MISTRAL)
    assert mounted.parent.parent == view.home / "hub" / "models--mistralai--Mistral-7B-v0.1"
    assert len(mounted.name) == 40
    assert set(mounted.name) <= set("0123456789abcdef")
    assert all(path.is_symlink() for path in mounted.iterdir())
    assert digest_of(mounted) == digest_of(snapshot)
    assert (view.home / "hub" / "version.txt").read_text() == "1"


def test_what_cannot_be_mounted_or_found_is_refused(view: HubView, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        view.mount(MISTRAL, tmp_path / "absent")
    with pytest.raises(LookupError, match=MISTRAL):
        view.snapshot(MISTRAL)


def test_a_variant_resolves_inside_the_block_only_and_the_store_stays(
    view: HubView, snapshot_of: SnapshotOf
) -> None:
    snapshot = snapshot_of(MISTRAL)
    before = digest_of(snapshot)
    view.mount(MISTRAL, snapshot)
    original = view.snapshot(MISTRAL)

    def set_eos(directory: Path) -> None:
        path = directory / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 7]}))
        (directory / "special_tokens_map.json").unlink()
        (directory / "extra.json").write_text("{}")
        assert not any(path.is_symlink() for path in directory.iterdir())

    with view.variant(MISTRAL, set_eos) as outer:
        assert view.snapshot(MISTRAL) == outer != original
        with view.variant(MISTRAL, lambda directory: (directory / "config.json").unlink()) as inner:
            assert view.snapshot(MISTRAL) == inner
            assert json.loads((inner / "generation_config.json").read_text())["eos_token_id"] == [
                2,
                7,
            ]
        assert view.snapshot(MISTRAL) == outer
    assert view.snapshot(MISTRAL) == original
    assert not outer.exists()
    assert not inner.exists()
    assert digest_of(snapshot) == before


@pytest.mark.parametrize("where", ["edit", "block"])
def test_a_variant_is_undone_when_something_raises(
    view: HubView, snapshot_of: SnapshotOf, where: str
) -> None:
    view.mount(MISTRAL, snapshot_of(MISTRAL))
    original = view.snapshot(MISTRAL)

    def edit(directory: Path) -> None:
        if where == "edit":
            raise RuntimeError("in the edit")

    with pytest.raises(RuntimeError), view.variant(MISTRAL, edit):
        raise RuntimeError("in the block")
    assert view.snapshot(MISTRAL) == original
    assert list(original.parent.iterdir()) == [original]


def test_the_environment_is_offline_private_and_without_a_token(view: HubView) -> None:
    environment = view.environment()
    assert environment["HF_HOME"] == str(view.home)
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_ENDPOINT"):
        assert environment[name] is None
