"""The request for a run of the suite. A request that exists is valid, whichever entry point made
it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conformance.catalogue import catalogue, expected_clauses, profiles
from conformance.errors import CannotAssess, did_you_mean

BUDGETS = ("quick", "standard", "thorough")
DEVICES = ("auto", "cpu", "cuda")
DEFAULT_TIMEOUT_SECONDS = 120.0
STREAMING_PROFILE = "scale"
"""The profile that runs at the published size, a layer at a time."""
DEVICE_PROFILE = "gpu"
"""The profile that runs on a CUDA device; all others run on the CPU."""


class InvalidRequest(CannotAssess):
    """A field of a request has a value that it does not take, or one that another field rules out.

    The message names fields in braces: `{seed} is -1, but should be 0 or more`. Each entry point
    fills in its own names with `said`; as a string, the message has the names of `RunRequest`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._message = message

    def said(self, name_of: Callable[[str], str]) -> str:
        """The message, with `name_of(field)` for each field it names."""
        names = {field: name_of(field) for field in RunRequest.__dataclass_fields__}
        return self._message.format(**names)

    def __str__(self) -> str:
        return self.said(lambda field: f"`{field}`")


class UnknownProfile(InvalidRequest, KeyError):
    """No profile of this name is implemented."""


@dataclass(frozen=True)
class RunRequest:
    """One run: which subject, which clauses, under which conditions.

    `only` restricts the run to a few clauses, and such a run never certifies. `weights` is what
    profile `scale` streams (all others run on the probe): `full` (the published size with seeded
    weights) or the directory of a real checkpoint; it is `probe` without that profile. `auto`
    chooses `full` or `probe`. `device` is `cuda` with profile `gpu` and else `cpu`, which `auto`
    chooses. `timeout` is in seconds: a step (resolution, construction, one clause) in which nothing
    happens for so long hangs, and so does one that takes ten times as long in all; `memory_limit`
    is in bytes of resident memory, None for three quarters of what is available.
    `models` are `ORG/NAME=FOLDER`, published files of hub ids without a recipe, and `cache` the
    `hub` folder of the Hugging Face cache in which others are looked for, the user's own by
    default; configs that ask for code of their own are taken with `trust_remote_code` alone.

    Raises:
        InvalidRequest: for a value that a field does not take, or that another field rules out.
    """

    target: str
    backbone_id: str | None = None
    profiles: tuple[str, ...] = ("default",)
    only: tuple[str, ...] | None = None
    weights: str = "auto"
    device: str = "auto"
    budget: str = "standard"
    seed: int = 0
    jobs: int = 1
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    hub: Path | None = None
    recipes: tuple[Path, ...] = ()
    config: Path | None = None
    memory_limit: int | None = None
    models: tuple[str, ...] = ()
    cache: Path | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_profiles(self.profiles)
        _check_clauses(self.only)
        _one_of("budget", self.budget, BUDGETS)
        _whole("seed", self.seed, least=0)
        _whole("jobs", self.jobs, least=1)
        _positive("timeout", self.timeout, "seconds")
        if self.memory_limit is not None:
            _positive("memory_limit", self.memory_limit, "bytes")
        _one_of("device", self.device, DEVICES)
        _check_models(self.models)
        if self.cache is None:
            object.__setattr__(self, "cache", _cache_of_the_user())
        object.__setattr__(self, "weights", _weights_for(self.weights, self.profiles))
        object.__setattr__(self, "device", _device_for(self.device, self.profiles))

    @property
    def clauses(self) -> tuple[str, ...]:
        """The IDs to judge."""
        return self.only if self.only is not None else expected_clauses(self.profiles)

    def as_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal request."""
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
        paths = {name: data[name] and Path(data[name]) for name in ("hub", "config", "cache")}
        sequences = {
            "profiles": tuple(data["profiles"]),
            "only": None if data["only"] is None else tuple(data["only"]),
            "recipes": tuple(Path(item) for item in data["recipes"]),
            "models": tuple(data["models"]),
        }
        return cls(**{**data, **paths, **sequences})


def check_profiles(names: Sequence[str]) -> None:
    """Refuse names of profiles that are not implemented.

    Raises:
        UnknownProfile: for the first such name; the message lists those that are.
    """
    if not names:
        raise InvalidRequest("{profiles} is empty: name one or more profiles")
    for name in names:
        if name not in profiles():
            raise UnknownProfile(
                f"profile `{name}` is not implemented in this version"
                f"{did_you_mean(name, profiles())}; implemented: {', '.join(profiles())}"
            )


def _check_clauses(only: Sequence[str] | None) -> None:
    if only is not None and not only:
        raise InvalidRequest("{only} is empty: name one or more clauses, or leave it out")
    for clause in only or ():
        if clause not in catalogue():
            raise InvalidRequest(
                f"{{only}} names `{clause}`, which is not a clause; `conformance requirements` "
                f"lists them"
            )


def _check_models(models: Sequence[str]) -> None:
    from conformance.hub import InvalidModel, Sources  # half of what `--help` would wait for

    try:
        Sources.of(tuple(models))
    except InvalidModel as error:
        raise InvalidRequest(f"{{models}}: {_escaped(str(error))}") from None


def _cache_of_the_user() -> Path | None:
    """The user's own Hugging Face cache as it is now: runs give their processes another."""
    from conformance.hub import users_cache

    return users_cache()


def _one_of(field: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidRequest(
            f"{{{field}}} is {_braced(value)}, but should be one of {', '.join(choices)}"
        )


def _whole(field: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        number = (
            "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number, "
        )
        raise InvalidRequest(
            f"{{{field}}} is {_braced(value)}, but should be {number}{least} or more"
        )


def _positive(field: str, value: Any, unit: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        shown = f"{value:g}" if is_number else _braced(value)
        raise InvalidRequest(f"{{{field}}} is {shown}, but should be a number of {unit} above zero")


def _weights_for(asked: str, names: Sequence[str]) -> str:
    scale = STREAMING_PROFILE in names
    if asked == "auto":
        return "full" if scale else "probe"
    asked = os.fspath(asked)
    shown = _escaped(asked)
    if asked == "probe":
        if scale:
            raise InvalidRequest(
                f"{{weights}} probe is tiny, and profile {STREAMING_PROFILE} streams the "
                f"published size: leave {{weights}} "
                "out, or give full or the directory of a checkpoint (the other profiles run on "
                "the probe in any case)"
            )
        return asked
    if asked != "full" and not Path(asked).is_dir():
        raise InvalidRequest(
            f"{{weights}} {shown} is not a directory; it takes probe, full, or the directory of a "
            f"checkpoint "
            "(config.json and safetensors files)"
        )
    if not scale:
        raise InvalidRequest(
            f"{{weights}} {shown} is for profile {STREAMING_PROFILE}, which was not requested: "
            f"add {{profiles}} {STREAMING_PROFILE}, or leave {{weights}} out"
        )
    if asked != "full":
        _check_checkpoint(Path(asked))
    return asked


def _device_for(asked: str, names: Sequence[str]) -> str:
    runs_on = "cuda" if DEVICE_PROFILE in names else "cpu"
    if asked not in ("auto", runs_on):
        leave_out = "leave {device} out"
        remedy = (
            leave_out if runs_on == "cuda" else f"add {{profiles}} {DEVICE_PROFILE}, or {leave_out}"
        )
        raise InvalidRequest(
            f"{{device}} {asked} does not go with profile {','.join(names)}, which runs on "
            f"{runs_on}: {remedy}"
        )
    return runs_on


def _check_checkpoint(directory: Path) -> None:
    from conformance.subject.checkpoint import Checkpoint, InvalidCheckpoint

    try:
        checkpoint = Checkpoint(directory)
        _ = checkpoint.config, checkpoint.shapes
    except InvalidCheckpoint as error:
        raise InvalidRequest(
            f"{{weights}} {_escaped(str(directory))} holds no whole checkpoint: "
            f"{_escaped(str(error))}"
        ) from None


def _braced(value: Any) -> str:
    return _escaped(repr(value))


def _escaped(text: str) -> str:
    """`text` as a part of a message whose braces name fields."""
    return text.replace("{", "{{").replace("}", "}}")
