"""A view: one run's private HF_HOME, whose files are links into the shared store."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNSET_VARIABLES = (
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_ASSETS_CACHE",
    "HUGGINGFACE_ASSETS_CACHE",
    "HF_MODULES_CACHE",
    "HF_XET_CACHE",
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_ENDPOINT",
    "HUGGINGFACE_CO_STAGING",
    "HF_HUB_ENABLE_HF_TRANSFER",
)
"""What transformers and huggingface_hub read besides HF_HOME to find a cache, a token or a server.
"""


class HubView:
    """The Hugging Face cache of one run, at `home`. What its links point to is never written to."""

    def __init__(self, home: Path) -> None:
        self.home = Path(home).resolve()
        self.cache = self.home / "hub"
        self.cache.mkdir(parents=True, exist_ok=True)
        # Without it transformers 4.40.1 takes the cache for one of an older layout and would
        # migrate it.
        (self.cache / "version.txt").write_text("1")

    def environment(self) -> dict[str, str | None]:
        """The environment of a child that imports transformers; None: must be unset."""
        return {
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **dict.fromkeys(UNSET_VARIABLES),
        }

    def mount(self, hub_id: str, snapshot: Path) -> None:
        """Lets `hub_id` resolve to the files of `snapshot`; mounting again replaces what it
        resolved to.

        Raises:
            FileNotFoundError: `snapshot` is not a directory.
        """
        source = Path(snapshot).resolve()
        if not source.is_dir():
            raise FileNotFoundError(f"cannot mount {hub_id!r}: {snapshot} is not a directory")
        commit = hashlib.sha1(str(source).encode()).hexdigest()
        target = self._snapshots(hub_id) / commit
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir()):
            link = target / path.name
            if not link.is_symlink():
                link.symlink_to(path)
        self._point(hub_id, commit)

    def mounted(self) -> list[str]:
        """The hub ids that resolve, sorted."""
        references = self.cache.glob("models--*/refs/main")
        return sorted(
            path.parent.parent.name.removeprefix("models--").replace("--", "/")
            for path in references
        )

    def is_mounted(self, hub_id: str) -> bool:
        """Whether `hub_id` resolves."""
        return self._reference(hub_id).is_file()

    def snapshot(self, hub_id: str) -> Path:
        """The directory that `hub_id` resolves to now.

        Raises:
            LookupError: `hub_id` is not mounted.
        """
        try:
            commit = self._reference(hub_id).read_text()
        except FileNotFoundError:
            raise LookupError(
                f"hub id {hub_id!r} is not mounted in {self.home}; "
                f"mounted are: {', '.join(self.mounted()) or 'none'}"
            ) from None
        return self._snapshots(hub_id) / commit

    @contextmanager
    def variant(self, hub_id: str, edit: Callable[[Path], None]) -> Iterator[Path]:
        """Lets `hub_id` resolve to an edited copy inside the `with` block, and to the original
        afterwards.

        `edit` gets a directory of real files: nothing it does there reaches the store. Variants
        nest.

        Raises:
            LookupError: `hub_id` is not mounted.
        """
        current = self.snapshot(hub_id)
        commit = secrets.token_hex(20)
        target = self._snapshots(hub_id) / commit
        try:
            shutil.copytree(current, target, copy_function=shutil.copyfile)
            edit(target)
            self._point(hub_id, commit)
            yield target
        finally:
            self._point(hub_id, current.name)
            shutil.rmtree(target, ignore_errors=True)

    def _repository(self, hub_id: str) -> Path:
        return self.cache / ("models--" + hub_id.replace("/", "--"))

    def _snapshots(self, hub_id: str) -> Path:
        return self._repository(hub_id) / "snapshots"

    def _reference(self, hub_id: str) -> Path:
        return self._repository(hub_id) / "refs" / "main"

    def _point(self, hub_id: str, commit: str) -> None:
        reference = self._reference(hub_id)
        reference.parent.mkdir(parents=True, exist_ok=True)
        scratch = reference.with_name(f".main-{secrets.token_hex(4)}")
        scratch.write_text(commit)
        os.replace(scratch, reference)
