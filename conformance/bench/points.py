"""What can be timed, and the names by which results of different runs are matched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SIZES = ("probe", "full")
WORKLOADS = ("prefill", "decode", "train")
GRIDS: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "probe": {"prefill": ((1, 32),), "decode": ((1, 32),), "train": ((1, 16),)},
    "full": {
        "prefill": ((1, 2048), (8, 512)),
        "decode": ((1, 2048), (8, 2048)),
        "train": ((1, 1024),),
    },
}
"""Batch and length of each workload by size: enough work to time, little enough for many rounds."""
_BUILD = "build"
"""Stands for the workload of a target that could not be built."""
_COMPILED = "-compiled"
_NAME = re.compile(
    r"(?P<workload>\w+)\[(?P<target>.*)-(?P<size>probe|full)-(?P<attention>\w+)"
    rf"(?P<compiled>{_COMPILED})?-b(?P<batch>\d+)-s(?P<tokens>\d+)\]",
    re.DOTALL,
)


@dataclass(frozen=True)
class Point:
    """One benchmark: a workload of a target, at a size, on an attention implementation, over
    (batch, tokens)."""

    target: str
    size: str
    workload: str
    attention: str
    batch: int
    tokens: int
    compiled: bool = False

    @classmethod
    def parse(cls, name: str) -> Point | None:
        """The point with this name; None for other names, such as a target that could not be
        built."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(
            found["target"], found["size"], found["workload"], found["attention"],
            int(found["batch"]), int(found["tokens"]), bool(found["compiled"]),
        )  # fmt: skip

    @property
    def name(self) -> str:
        return f"{self.workload}[{self.setting}-b{self.batch}-s{self.tokens}]"

    @property
    def setting(self) -> str:
        """The part of the name shared by points of the same target, size and way of computing."""
        return f"{self.target}-{self.size}-{self.attention}{_COMPILED if self.compiled else ''}"

    @property
    def short(self) -> str:
        """The name without the setting: `prefill b1 s32`."""
        return f"{self.workload} b{self.batch} s{self.tokens}"


def points(
    target: str,
    size: str,
    attentions: Sequence[str],
    *,
    compiled: bool = False,
    workloads: Sequence[str] = (),
) -> list[Point]:
    """The grid of one target; compiled models are timed beside the others if requested."""
    return [
        Point(target, size, workload, attention, batch, tokens, how)
        for workload, shapes in GRIDS[size].items()
        if not workloads or workload in workloads
        for attention in attentions
        for how in ((False, True) if compiled and workload != "decode" else (False,))
        for batch, tokens in shapes
    ]


def building(target: str) -> str:
    """The name under which a target that could not be built is reported."""
    return f"{_BUILD}[{target}]"


def is_among(name: str, targets: Sequence[str], workloads: Sequence[str]) -> bool:
    """Whether a name belongs to these targets and workloads; empty stands for all.

    A target that could not be built has no workload, and belongs to any.
    """
    point = Point.parse(name)
    if point is None:
        return not targets or name in map(building, targets)
    return (not workloads or point.workload in workloads) and (
        not targets or point.target in targets
    )


def labels(names: Sequence[str]) -> dict[str, str]:
    """A short form of each name if all have the same setting, else the names themselves."""
    if not common_setting(names):
        return {name: name for name in names}
    found = {name: Point.parse(name) for name in names}
    return {name: point.short if point else name for name, point in found.items()}


def common_setting(names: Sequence[str]) -> str:
    """The setting that `labels` leaves out."""
    settings = {point.setting for name in names if (point := Point.parse(name)) is not None}
    return settings.pop() if len(settings) == 1 else ""
