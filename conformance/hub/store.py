"""The content store: one immutable snapshot for each recipe, built once, on demand.

    ROOT/<org>--<name>/<digest>/manifest.json     size and digest of each file, build versions
    ROOT/<org>--<name>/<digest>/snapshot/…        the files, read-only

An entry appears by a rename, so it is whole or absent. A build holds a lock on the directory of its
hub id, which the kernel releases when the process ends. Reading takes no lock and needs no write
access: a hub that was built on another machine can be copied and used, even from a read-only
medium.

An entry can leave its weights out, which are most of it: they are made where they are first asked
for, and that takes torch and transformers alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess
from conformance.hub.recipe import Recipe
from conformance.places import user_cache

HUB_VARIABLE = "CONFORMANCE_HUB"
SHARDS = 2
WEIGHTS = ("probe", "later")
_INDEX = "model.safetensors.index.json"

Progress = Callable[[str], None]


class CannotBuild(CannotAssess):
    """A recipe's snapshot cannot be built on this machine. The message names the recipe, the place
    and the reason."""


@dataclass(frozen=True)
class HubEntry:
    """One built snapshot: its hub id, the digest of its recipe, its size in bytes, its directory,
    and whether its weights are there."""

    hub_id: str
    digest: str
    bytes: int
    path: Path
    has_weights: bool


class Hub:
    """The snapshots under one root directory: `$CONFORMANCE_HUB` by default, else the user's
    cache."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root is not None else _default_root()

    def build(
        self, recipe: Recipe, weights: str = "probe", on_progress: Progress | None = None
    ) -> Path:
        """The directory of the recipe's snapshot, built if it is missing or damaged.

        With `weights="later"` it has the tokenizer alone: a fifth of the bytes, to be carried to
        another machine, where the first build of `"probe"` weights completes it without
        mistral-common. `on_progress` is called with one line of text as each step begins. Only a
        build imports torch, transformers and mistral-common: an existing snapshot is verified with
        the standard library alone.

        Raises:
            ValueError: `weights` cannot be built here.
            CannotBuild: what the tokenizer is made from is not installed, the installed
                transformers refuses the architecture or its config, or the root cannot be written
                to.
        """
        if weights not in WEIGHTS:
            raise ValueError(
                f"weights={weights!r} cannot be built here; right would be 'probe', or 'later'"
            )
        home = self.root / recipe.hub_id.replace("/", "--")
        entry = home / recipe.digest()
        if _is_whole(entry, weights):
            return entry / "snapshot"
        from conformance.hub.vocabulary import VocabularyUnavailable

        try:
            home.mkdir(parents=True, exist_ok=True)
            with _locked(home):
                if not _is_whole(entry, weights):
                    _remove_abandoned(home)
                    _build_entry(recipe, entry, weights, on_progress or (lambda line: None))
        except (VocabularyUnavailable, OSError, ValueError) as error:
            source = f" (recipe {recipe.path})" if recipe.path else ""
            raise CannotBuild(
                f"{recipe.hub_id}{source} could not be built in `{self.root}`: {error}"
            ) from error
        return entry / "snapshot"

    def entries(self) -> list[HubEntry]:
        """The usable entries, by hub id. Half-written and foreign directories are skipped."""
        entries = []
        for path in sorted(self.root.glob("*/*/manifest.json")):
            manifest = _read_manifest(path.parent)
            if manifest is not None and not path.parent.name.startswith("."):
                size = sum(facts["bytes"] for facts in manifest["files"].values())
                entries.append(
                    HubEntry(
                        manifest["hub_id"],
                        manifest["digest"],
                        size,
                        path.parent / "snapshot",
                        _INDEX in manifest["files"],
                    )
                )
        return entries

    def damaged(self) -> list[Path]:
        """The directories of entries whose files are not those of their manifest, or that have no
        manifest. Every file is read; a build makes the entry anew."""
        return [
            path
            for path in sorted(self.root.glob("*--*/*"))
            if not path.name.startswith(".")
            and any((path / part).exists() for part in ("manifest.json", "snapshot"))
            and not _is_whole(path, "later")
        ]


def _default_root() -> Path:
    named = os.environ.get(HUB_VARIABLE)
    if named:
        return Path(named)
    return user_cache() / "hub"


def _build_entry(recipe: Recipe, entry: Path, weights: str, on_progress: Progress) -> None:
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=entry.parent))
    try:
        building.chmod(0o755)
        snapshot = building / "snapshot"
        snapshot.mkdir()
        _write_tokenizer(recipe, entry, snapshot, on_progress)
        _write_json(snapshot / "config.json", recipe.probe_config())
        if recipe.generation_config is not None:
            _write_json(snapshot / "generation_config.json", recipe.generation_config)
        if weights == "probe":
            on_progress(f"{recipe.hub_id}: probe weights ({recipe.architecture}, {recipe.dtype})")
            _write_weights(recipe, snapshot)
        _write_json(
            building / "manifest.json",
            {
                "hub_id": recipe.hub_id,
                "digest": entry.name,
                "files": {path.name: _file_facts(path) for path in sorted(snapshot.iterdir())},
                "built_with": _versions(),
            },
        )
        for path in (*snapshot.iterdir(), building / "manifest.json"):
            path.chmod(0o444)
        if entry.exists():
            # Renamed first, so that the name never stands for half of an entry.
            damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=entry.parent))
            os.rename(entry, damaged / "entry")
            shutil.rmtree(damaged)
        os.rename(building, entry)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _write_tokenizer(recipe: Recipe, entry: Path, snapshot: Path, on_progress: Progress) -> None:
    """The tokenizer's files: the entry's own if all are intact, else made anew."""
    from conformance.hub.published import TOKENIZER_FILES
    from conformance.hub.vocabulary import write_tokenizer

    manifest = _read_manifest(entry) or {"digest": None, "files": {}}
    there = {name: facts for name, facts in manifest["files"].items() if name in TOKENIZER_FILES}
    if there and manifest["digest"] == entry.name and _intact(entry, there) == set(there):
        for name in there:
            shutil.copyfile(entry / "snapshot" / name, snapshot / name)
        return
    on_progress(f"{recipe.hub_id}: tokenizer ({recipe.tokenizer.kind}, {recipe.tokenizer.source})")
    write_tokenizer(recipe, snapshot)


def _write_weights(recipe: Recipe, snapshot: Path) -> None:
    from safetensors.torch import save_file

    from conformance.hub.weights import checkpoint_shapes, has_tied_head, norm_centre, probe_tensors

    config = recipe.probe_config()
    text_config = config.get("text_config", config)
    shapes = checkpoint_shapes(config, recipe.architecture)
    tensors = dict(
        probe_tensors(
            shapes,
            seed=recipe.hub_id,
            vocabulary=text_config["vocab_size"],
            tied=has_tied_head(shapes, text_config["vocab_size"]),
            dtype=recipe.dtype,
            centre=norm_centre(text_config),
        )
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, Any]] = [{} for _ in range(SHARDS)]
    written = 0
    for index, (name, tensor) in enumerate(tensors.items()):
        # The last shard always gets something: a constructor must find an index, as at the
        # published size.
        last = index == len(tensors) - 1
        shards[SHARDS - 1 if last else min(written * SHARDS // total, SHARDS - 1)][name] = tensor
        written += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file(shard, snapshot / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
    _write_json(
        snapshot / _INDEX,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _is_whole(entry: Path, weights: str) -> bool:
    manifest = _read_manifest(entry)
    if manifest is None or manifest["digest"] != entry.name:
        return False
    if weights == "probe" and _INDEX not in manifest["files"]:
        return False
    try:
        names = {path.name for path in (entry / "snapshot").iterdir()}
    except OSError:
        return False
    return names == set(manifest["files"]) == _intact(entry, manifest["files"])


def _intact(entry: Path, files: dict[str, Any]) -> set[str]:
    """The names of the files that are there and as the manifest describes them."""
    intact = set()
    for name, facts in files.items():
        try:
            if _file_facts(entry / "snapshot" / name) == facts:
                intact.add(name)
        except OSError:
            continue
    return intact


def _read_manifest(entry: Path) -> dict[str, Any] | None:
    """The manifest of an entry, or None if there is no usable one."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        if all(isinstance(facts["bytes"], int) for facts in manifest["files"].values()):
            return {
                "hub_id": manifest["hub_id"],
                "digest": manifest["digest"],
                "files": manifest["files"],
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _file_facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "safetensors", "sentencepiece", "mistral_common"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which ends with the open descriptor: nothing is left behind."""
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(home: Path) -> None:
    """Removes what killed builds left. The caller holds the lock, so no build is under way."""
    for path in (*home.glob(".building-*"), *home.glob(".damaged-*")):
        shutil.rmtree(path, ignore_errors=True)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
