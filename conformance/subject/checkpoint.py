"""The tensors of a checkpoint directory, read one at a time with safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.hub.published import UnusableFiles, json_object

if TYPE_CHECKING:
    import torch

CONFIG_JSON = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class InvalidCheckpoint(ValueError):
    """A directory that holds no whole safetensors checkpoint. The message names the file, and what
    is wrong with it."""


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """Tensor name → tensor, memory-mapped and read on request.

    Raises:
        FileNotFoundError: if `directory` holds no safetensors checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's `config.json`.

        Raises:
            InvalidCheckpoint: if there is none, or it is not a JSON object.
        """
        return _json_object(self.directory / CONFIG_JSON)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, from the headers of the files alone; imports no torch.

        Raises:
            InvalidCheckpoint: if a file is missing, cut short or not a safetensors file, or lacks
                what the index says it holds.
        """
        if not (self.directory / INDEX_FILE).is_file():
            return _shapes_in(self.directory / SINGLE_FILE)
        file_of = _json_object(self.directory / INDEX_FILE).get("weight_map")
        if not isinstance(file_of, dict) or not all(
            isinstance(file, str) for file in file_of.values()
        ):
            raise InvalidCheckpoint(
                f"`{self.directory / INDEX_FILE}` has no `weight_map` from tensors to files"
            )
        held = {file: _shapes_in(self.directory / file) for file in sorted(set(file_of.values()))}
        for name, file in file_of.items():
            if name not in held[file]:
                raise InvalidCheckpoint(
                    f"`{self.directory / file}` lacks the tensor `{name}`, which `{INDEX_FILE}` "
                    f"says it holds"
                )
        return {name: held[file][name] for name, file in file_of.items()}

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


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return json_object(path)
    except UnusableFiles as error:
        raise InvalidCheckpoint(str(error)) from None


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a safetensors file: the header's length in 8 bytes, the header in JSON, the
    values (https://github.com/huggingface/safetensors#format)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= size - 8:
                raise InvalidCheckpoint(
                    f"`{path}` is not a safetensors file, or cut short in its header"
                )
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except OSError as error:
        raise InvalidCheckpoint(f"`{path}` cannot be read: {error.strerror or error}") from None
    except InvalidCheckpoint:
        raise
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise InvalidCheckpoint(
            f"`{path}` is not a safetensors file: its header cannot be understood"
        ) from None
    if 8 + length + end > size:
        raise InvalidCheckpoint(
            f"`{path}` has {size} bytes, but its header describes {8 + length + end}"
        )
    return shapes
