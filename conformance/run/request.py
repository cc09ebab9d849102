"""What a run of the suite was asked to do, and the ways in which it can be refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess

BUDGETS = ("quick", "standard", "thorough")
DEFAULT_TIMEOUT_SECONDS = 120.0
#: The profile that runs at the published size, a layer at a time.
STREAMING_PROFILE = "scale"
#: The profile that runs on a CUDA device; all others run on the CPU.
DEVICE_PROFILE = "gpu"


@dataclass(frozen=True)
class RunRequest:
    """One run: which subject, which clauses, under which conditions.

    ``only`` restricts the run to a few clauses, and such a run never certifies. ``timeout`` is in seconds and bounds
    each step (resolution, construction, one clause); ``memory_limit`` is in bytes of resident memory, None for
    three quarters of what is available. ``weights`` is what :func:`weights_for` gives.
    """

    target: str
    backbone_id: str | None = None
    profiles: tuple[str, ...] = ("default",)
    only: tuple[str, ...] | None = None
    weights: str = "probe"
    device: str = "cpu"
    budget: str = "standard"
    seed: int = 0
    jobs: int = 1
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    hub: Path | None = None
    recipes: tuple[Path, ...] = ()
    config: Path | None = None
    memory_limit: int | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON object from which :meth:`from_json` makes an equal request."""
        return {
            key: list(map(os.fspath, value))
            if isinstance(value, tuple)
            else os.fspath(value)
            if isinstance(value, Path)
            else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRequest:
        paths = {"hub": data["hub"] and Path(data["hub"]), "config": data["config"] and Path(data["config"])}
        sequences = {
            "profiles": tuple(data["profiles"]),
            "only": None if data["only"] is None else tuple(data["only"]),
            "recipes": tuple(Path(item) for item in data["recipes"]),
        }
        return cls(**{**data, **paths, **sequences})


def weights_for(asked: str | None, profiles: Sequence[str]) -> str:
    """``probe``, or what profile ``scale`` streams beside the probe that all others run on: ``full``, the published size
    with seeded weights, or the directory of a real checkpoint.

    Raises:
        CannotAssess: for weights that no profile asked for uses, or a directory that holds no whole checkpoint.
    """
    scale = STREAMING_PROFILE in profiles
    if asked is None:
        return "full" if scale else "probe"
    if asked == "probe":
        if scale:
            raise CannotAssess(
                f"--weights probe is tiny, and profile {STREAMING_PROFILE} streams the published size: leave --weights "
                "out, or give full or the directory of a checkpoint (the other profiles run on the probe in any case)"
            )
        return asked
    if asked != "full" and not Path(asked).is_dir():
        raise CannotAssess(
            f"--weights {asked} is no directory; it takes probe, full, or the directory of a checkpoint "
            "(config.json and safetensors files)"
        )
    if not scale:
        raise CannotAssess(
            f"--weights {asked} is for profile {STREAMING_PROFILE}, which was not asked for: "
            f"add --profile {STREAMING_PROFILE}, or leave --weights out"
        )
    if asked != "full":
        _check(Path(asked))
    return asked


def device_for(asked: str, profiles: Sequence[str]) -> str:
    """``cuda`` where profile ``gpu`` is asked for, else ``cpu``: where clauses run is a matter of their profile.

    Raises:
        CannotAssess: for another device than the profiles run on.
    """
    runs_on = "cuda" if DEVICE_PROFILE in profiles else "cpu"
    if asked not in ("auto", runs_on):
        raise CannotAssess(
            f"--device {asked} does not go with profile {','.join(profiles)}, which runs on {runs_on}: "
            + (
                "leave --device out"
                if runs_on == "cuda"
                else f"add --profile {DEVICE_PROFILE}, or leave --device out"
            )
        )
    return runs_on


def _check(directory: Path) -> None:
    from conformance.subject.checkpoint import Checkpoint, InvalidCheckpoint

    try:
        checkpoint = Checkpoint(directory)
        _ = checkpoint.config, checkpoint.shapes
    except InvalidCheckpoint as error:
        raise CannotAssess(f"--weights {directory} holds no whole checkpoint: {error}") from None
