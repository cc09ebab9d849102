"""What one process of a benchmark run was asked to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HOME = "CONFORMANCE_BENCH_HOME"
"""Names the folder of a process that measures: what it leaves there goes when it does, however it
ends."""
ROUNDS = 90
"""More than a median needs: the first are left out until a benchmark runs steadily."""
LEAST_ROUNDS = 30
"""Fewer rounds than this have no median to speak of."""
MOST_ROUNDS = 1000
"""The centre of a pair looks at any two of its rounds."""


@dataclass(frozen=True)
class BenchRequest:
    """One process: which targets, at which size, on which device.

    `code` is the root of the checkout that the targets' code must come from, None for what is
    installed; `repository` is the one that it was made of, whose own files must not be loaded in
    its place. `injected` slows a benchmark down on purpose, by its name: how much extra work is in
    each round (see `bench.child.injection`); `injected_bytes` are allocated beside it. `first` says
    which of two processes that take turns begins, None that this one runs alone; `processor` is the
    one that both keep to, `pair` the name that they have in common, `pairs` how many there are to
    be.
    """

    targets: tuple[str, ...]
    backbone_id: str | None = None
    size: str = "probe"
    device: str = "cpu"
    attentions: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    compiled: bool = False
    rounds: int = ROUNDS
    memory: bool = True
    seed: int = 0
    hub: str | None = None
    recipes: tuple[str, ...] = ()
    config: str | None = None
    code: str | None = None
    repository: str | None = None
    injected: Mapping[str, int] = field(default_factory=dict)
    injected_bytes: int = 0
    first: bool | None = None
    processor: int | None = None
    pair: str | None = None
    pairs: int | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal request."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchRequest:
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})

    def paths(self) -> dict[str, Any]:
        """What a `RunRequest` takes of it."""
        return {
            "hub": Path(self.hub) if self.hub else None,
            "recipes": tuple(map(Path, self.recipes)),
            "config": Path(self.config) if self.config else None,
        }
