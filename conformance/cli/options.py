"""Options that commands share, and checks of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from conformance.catalogue import catalogue, profiles
from conformance.errors import CannotAssess

SETTINGS = {"help_option_names": ["-h", "--help"]}


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes a name, or the last of those joined by commas, in the shell."""

    def complete(incomplete: str) -> list[str]:
        before = incomplete[: incomplete.rfind(",") + 1]
        return [
            before + name
            for name in names()
            if name.lower().startswith(incomplete[len(before) :].lower())
        ]

    return complete


def clause_ids() -> Iterable[str]:
    return catalogue()


def backbone_ids() -> Iterable[str]:
    from conformance.subject.target import registered_targets

    return registered_targets()


BackboneId = Annotated[
    Optional[str],
    typer.Option(
        "--id", help="The id to ask the class for.", autocompletion=completing(backbone_ids)
    ),
]
Config = Annotated[
    Optional[Path],
    typer.Option(help="TOML file with [subject] and [adapter] tables [default: conformance.toml]."),
]
HubRoot = Annotated[
    Optional[Path],
    typer.Option("--hub", help="Where built checkpoints are kept [env: CONFORMANCE_HUB]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]
Recipes = Annotated[
    Optional[list[Path]],
    typer.Option("--recipes", help="Recipe file or directory; may be repeated."),
]

Models = Annotated[
    Optional[list[str]],
    typer.Option(
        "--model",
        metavar="ORG/NAME=DIR",
        help="Folder with the published config and tokenizer of a model that has no recipe; may "
        "be repeated. Weights are not read.",
    ),
]
PublishedIn = Annotated[
    Optional[Path],
    typer.Option("--from", metavar="DIR", help="Folder with the published files."),
]
FromCache = Annotated[
    bool, typer.Option("--from-cache", help="Take them from your Hugging Face cache.")
]
Fetch = Annotated[
    bool, typer.Option("--download", help="Fetch them from the hub into your cache; no weights.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Take a model whose config asks for code of its own."),
]

Profile = Annotated[
    Optional[str],
    typer.Option(
        "--profile",
        help="Names, joined by commas [default: default].",
        autocompletion=completing(profiles),
    ),
]


_OPTIONS = {
    "backbone_id": "--id",
    "profiles": "--profile",
    "memory_limit": "--max-memory",
    "models": "--model",
}
"""Options of `conformance certify` whose names differ from the fields of a `RunRequest`."""


def option_of(field: str) -> str:
    """The option that sets this field of a `RunRequest`."""
    return _OPTIONS.get(field, f"--{field.replace('_', '-')}")


def names_in(option: str, text: str) -> list[str]:
    """The names in `text`, which are joined by commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise CannotAssess(f"{option} is empty: give names joined by commas")
    return names


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise CannotAssess(f"{option} is {value!r}, but should be one of {', '.join(choices)}")
    return value


def at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise CannotAssess(f"{option} is {value}, but should be {least} or more")
    return value


def at_most(option: str, value: int, most: int) -> int:
    if value > most:
        raise CannotAssess(f"{option} is {value}, but should be {most} or less")
    return value


def positive(option: str, value: float, unit: str) -> float:
    if not math.isfinite(value) or value <= 0:
        raise CannotAssess(f"{option} is {value:g}, but should be a number of {unit} above zero")
    return value
