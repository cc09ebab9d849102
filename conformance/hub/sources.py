"""Where the published files of a model without a recipe may lie: a folder that the user names, or
the user's own Hugging Face cache. Nothing is fetched unless the user asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conformance.errors import CannotAssess
from conformance.hub.published import CONFIG, GENERATION_CONFIG, TOKENIZER_FILES


class InvalidModel(CannotAssess):
    """A named model is not `ORG/NAME=FOLDER`. The message says what it lacks."""


class CannotDownload(CannotAssess):
    """Published files could not be fetched. The message says why, and what to try."""


@dataclass(frozen=True)
class Sources:
    """Folders by hub id, and the `hub` folder of a Hugging Face cache (None: look in none)."""

    models: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | None = None

    @classmethod
    def of(cls, named: tuple[str, ...] = (), cache: Path | None = None) -> Sources:
        """From models as they are named on a command line, each `ORG/NAME=FOLDER`.

        Raises:
            InvalidModel: one has another form, or its folder does not exist.
        """
        return cls(dict(map(_named, named)), cache)

    def folder_of(self, hub_id: str) -> Path | None:
        """The folder with the published files of `hub_id`, None if there is none here."""
        if hub_id in self.models:
            return self.models[hub_id]
        return None if self.cache is None else _snapshot(self.cache, hub_id)

    def hub_ids(self) -> list[str]:
        """Every hub id whose config lies here, sorted."""
        cached = (
            {
                folder.name.removeprefix("models--").replace("--", "/")
                for folder in self.cache.glob("models--*")
            }
            if self.cache is not None
            else set()
        )
        return sorted({*self.models, *(one for one in cached if self.folder_of(one))})


def download(hub_id: str) -> Path:
    """Fetch the published JSON and tokenizer files of `hub_id`, no weights, into the user's own
    Hugging Face cache; returns the snapshot's folder.

    Raises:
        CannotDownload: the hub cannot be reached, has no such model, or does not give it to this
            user.
    """
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:
        raise CannotDownload(
            f"the published files of {hub_id} could not be fetched: {type(error).__name__}: "
            f"{str(error).rstrip('. ')}. If the model is gated, `hf auth login`; if there is no "
            f"network here, name a folder that has its config and tokenizer"
        ) from error


def users_cache() -> Path | None:
    """The `hub` folder of the user's own Hugging Face cache; None if there is no such folder."""
    path = cache_named_in(os.environ)
    return path.absolute() if path.is_dir() else None


def cache_named_in(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, by the variables that it reads
    (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables)."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return Path(environment[variable]).expanduser()
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(home).expanduser() / "hub"


def _named(text: str) -> tuple[str, Path]:
    hub_id, _, folder = text.partition("=")
    if not hub_id.strip() or not folder:
        raise InvalidModel(
            f"`{text}` should be ORG/NAME=FOLDER: the hub id that the constructor asks for, and "
            f"the folder that holds its published config.json and tokenizer files"
        )
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InvalidModel(f"`{folder}`, named for {hub_id}, is not a folder")
    return hub_id.strip(), path.absolute()


def _snapshot(cache: Path, hub_id: str) -> Path | None:
    """The snapshot of a repository's main revision, or the newest that has a config."""
    repository = cache / ("models--" + hub_id.replace("/", "--"))
    snapshots = repository / "snapshots"
    try:
        main = snapshots / (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        main = None
    if main is not None and (main / CONFIG).is_file():
        return main
    try:
        there = [path for path in snapshots.iterdir() if (path / CONFIG).is_file()]
    except OSError:
        return None
    return max(there, key=lambda path: path.stat().st_mtime, default=None)
