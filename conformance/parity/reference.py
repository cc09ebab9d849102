"""The reference decoder of one model: the architecture that its checkpoint's config describes, over
the model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from conformance.oracle import (
    FLOAT64,
    Architecture,
    Decoder,
    InvalidConfig,
    Precision,
    architecture_of,
)
from conformance.oracle.architecture import Names
from conformance.oracle.shapes import attention_shapes


@dataclass(frozen=True)
class Reference:
    """What `llm` should compute. `prefix` precedes the checkpoint's names in the model's own.

    `tokens` counts the ids that mean something, None for all rows: logits of the others are free.
    """

    architecture: Architecture
    weights: Mapping[str, torch.Tensor]
    prefix: str = ""
    tokens: int | None = None

    @classmethod
    def of(cls, llm: Any, config: Mapping[str, Any]) -> Reference:
        """The reference for `llm` as `config`, a parsed `config.json`, describes it.

        Raises:
            NoReference: for a model type without one.
            InvalidConfig: for a config that contradicts itself or the model's tensors.
        """
        architecture = architecture_of(config)
        prefix = prefix_of(llm, architecture)
        architecture = replace(architecture, names=names_in(llm, prefix, architecture.names))
        reference = cls(architecture, _Prefixed(llm.state_dict(), prefix), prefix)
        reference._check_shapes()
        return reference

    def decoder(self, precision: Precision = FLOAT64) -> Decoder:
        return Decoder(self.architecture, self.weights, precision)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.weights[f"{self.architecture.names.embedding}.weight"].shape[0])

    def spread(self, count: int) -> torch.Tensor:
        """Ids whose logits are compared: at least `count`, where there are so many, evenly
        spread."""
        ids = min(self.vocabulary, self.tokens or self.vocabulary)
        return torch.arange(0, ids, max(1, ids // count))

    def _check_shapes(self) -> None:
        a, names = self.architecture, self.architecture.names
        expected: dict[str, tuple[int, ...]] = {
            f"{names.embedding}.weight": (self.vocabulary, a.hidden)
        }
        for index in range(a.layers):
            path = f"{names.layers}.{index}.{names.attention}"
            expected |= {
                f"{path}.{kind}.weight": shape for kind, shape in attention_shapes(a).items()
            }
        for name, shape in expected.items():
            found = tuple(self.weights[name].shape) if name in self.weights else None
            if found != shape:
                raise InvalidConfig(
                    f"the config asks for a tensor `{name}` of shape {shape}, and the model has "
                    + ("none of that name" if found is None else f"one of shape {found}")
                )


def prefix_of(llm: Any, architecture: Architecture) -> str:
    """The prefix of the checkpoint's names in the model's own.

    Raises:
        InvalidConfig: if the model has no tensor, or several, named like the checkpoint's
            embedding.
    """
    embedding = f"{architecture.names.embedding}.weight"
    found = [
        name.removesuffix(embedding)
        for name, _ in llm.named_parameters()
        if name.endswith(embedding)
    ]
    if len(found) != 1:
        raise InvalidConfig(
            f"{len(found)} parameters of the model are named like `{embedding}`, but should be one"
        )
    return found[0]


def names_in(llm: Any, prefix: str, names: Names) -> Names:
    """The checkpoint's names, but for a head that the installed library calls otherwise.

    transformers 5 renames GPT-NeoX's `embed_out` to `lm_head` as it loads.
    """
    modules = dict(llm.named_modules())
    if prefix + names.head in modules or prefix + _HEAD not in modules:
        return names
    return replace(names, head=_HEAD)


_HEAD = "lm_head"


class _Prefixed(Mapping[str, torch.Tensor]):
    """A state dict under the names of the checkpoint."""

    def __init__(self, state: Mapping[str, torch.Tensor], prefix: str) -> None:
        self._state = state
        self._prefix = prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._state[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (
            name.removeprefix(self._prefix) for name in self._state if name.startswith(self._prefix)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)
