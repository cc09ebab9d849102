"""The tensors of a checkpoint directory, read one at a time with safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """Tensor name → tensor, memory-mapped and read when asked for.

    Raises:
        FileNotFoundError: if ``directory`` holds no safetensors checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def _file_of(self) -> dict[str, str]:
        index = self.directory / INDEX_FILE
        if index.is_file():
            return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        from safetensors import safe_open

        with safe_open(self.directory / SINGLE_FILE, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE_FILE)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.directory / self._file_of[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return tuple(self.directory / name for name in sorted(set(self._file_of.values())))
