"""What one process of a benchmark run was asked to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HOME = "CONFORMANCE_BENCH_HOME"
"""The environment variable that names a measuring process's folder, which is removed with it,
however it ends."""
ROUNDS = 90
"""More than a median needs: rounds before a benchmark runs steadily are left out."""
LEAST_ROUNDS = 30
"""Fewer rounds than this have no reliable median."""
MOST_ROUNDS = 1000
"""A limit, because the centre of a pair takes every two of its rounds."""


@dataclass(frozen=True)
class BenchRequest:
    """One process: which targets, at which size, on which device.

    `code` is the root of the checkout that the targets' code must come from, None for what is
    installed; `repository` is the repository of that checkout, whose own files must not be loaded
    instead. `injected` slows benchmarks down on purpose: by name, the units of extra work in each
    round (see `bench.child.injection`); `injected_bytes` are allocated beside it. `first` says
    whether this process begins the turns, None that it runs alone; `processor` is the one that both
    processes keep to, `pair` the name that they share, `pairs` the planned number of pairs.
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
        """The paths that a `RunRequest` takes."""
        return {
            "hub": Path(self.hub) if self.hub else None,
            "recipes": tuple(map(Path, self.recipes)),
            "config": Path(self.config) if self.config else None,
        }
