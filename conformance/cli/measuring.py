"""The options that say what to measure and how, shared by all commands that time something."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, Optional, get_type_hints

import typer

from conformance.bench.points import SIZES, WORKLOADS
from conformance.bench.request import LEAST_ROUNDS, MOST_ROUNDS, ROUNDS, BenchRequest
from conformance.cli.options import (
    BackboneId,
    Config,
    HubRoot,
    Recipes,
    at_least,
    at_most,
    names_in,
    one_of,
    option_of,
    positive,
)
from conformance.errors import CannotAssess
from conformance.run.request import DEVICES

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "all")

Targets = Annotated[
    Optional[list[str]],
    typer.Argument(
        metavar="[TARGET]...", help="Ids, `package.module:Class` or `path/to/file.py:Class`."
    ),
]


@dataclass(frozen=True)
class Measuring:
    """The options that say what to measure and how, as commands take them."""

    backbone_id: BackboneId = None
    size: Annotated[
        str, typer.Option(help="probe (tiny, seeded) or full (the published size, seeded).")
    ] = "probe"
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    attention: Annotated[
        Optional[str],
        typer.Option(
            help="eager, sdpa, flash_attention_2, joined by commas, or all [default: the "
            "backbone's own]."
        ),
    ] = None
    workload: Annotated[
        Optional[str],
        typer.Option(help=f"Of {', '.join(WORKLOADS)}, joined by commas [default: all]."),
    ] = None
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time compiled models beside the others.")
    ] = False
    rounds: Annotated[int, typer.Option(help="Rounds of each benchmark in each process.")] = ROUNDS
    timeout: Annotated[float, typer.Option(help="Seconds for each process.")] = 1800.0
    seed: Annotated[int, typer.Option(help="Seed of weights and tokens.")] = 0
    hub: HubRoot = None
    recipes: Recipes = None
    config: Config = None

    def __post_init__(self) -> None:
        positive("--timeout", self.timeout, "seconds")

    @property
    def workloads(self) -> tuple[str, ...]:
        return _each_of("--workload", self.workload, WORKLOADS)

    def request(self, targets: list[str] | None) -> BenchRequest:
        """The request to measure `targets`, or all that are registered.

        Raises:
            CannotAssess: for a value that an option does not take.
        """
        from conformance.subject.target import registered_targets

        recipes = self.recipes or []
        for option, place in (
            ("--config", self.config),
            *(("--recipes", recipe) for recipe in recipes),
        ):
            if place is not None and not place.exists():
                raise CannotAssess(f"{option} {place} does not exist")
        return BenchRequest(
            targets=tuple(targets or registered_targets()),
            backbone_id=self.backbone_id,
            size=one_of("--size", self.size, SIZES),
            device=device_of(self.device),
            attentions=_each_of("--attention", self.attention, ATTENTIONS),
            workloads=self.workloads,
            compiled=self.compiled,
            rounds=at_most(
                "--rounds", at_least("--rounds", self.rounds, LEAST_ROUNDS), MOST_ROUNDS
            ),
            seed=self.seed,
            hub=None if self.hub is None else str(self.hub.resolve()),
            recipes=tuple(str(path.resolve()) for path in recipes),
            config=None if self.config is None else str(self.config.resolve()),
        )


def with_measuring_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `measuring` is spelled out as the options of `Measuring`."""
    options = {field.name: field for field in fields(Measuring)}
    hints = get_type_hints(Measuring, include_extras=True)
    own = get_type_hints(command, include_extras=True)

    @wraps(command)
    def taking_options(**given: Any) -> None:
        taken = {name: given.pop(name) for name in options}
        command(**given, measuring=Measuring(**taken))

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != "measuring":
            parameters.append(parameter.replace(annotation=own[parameter.name]))
            continue
        parameters += (
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=field.default,
                annotation=hints[name],
            )
            for name, field in options.items()
        )
    taking_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taking_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return taking_options


def given_measuring_options(context: typer.Context, *others: str) -> list[str]:
    """The options of `Measuring`, and of the parameters `others`, given on the command line; except
    `--workload`, which selects stored results too."""
    names = [field.name for field in fields(Measuring) if field.name != "workload"]

    def was_given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    given = filter(was_given, (*names, *others))
    return ["--compile" if name == "compiled" else option_of(name) for name in given]


def _each_of(option: str, text: str | None, choices: tuple[str, ...]) -> tuple[str, ...]:
    return (
        tuple(one_of(option, name, choices) for name in names_in(option, text))
        if text is not None
        else ()
    )


def device_of(asked: str) -> str:
    """What `--device` names: `auto` is a CUDA device where there is one.

    Raises:
        CannotAssess: for another word, or without the device.
    """
    if one_of("--device", asked, DEVICES) == "cpu":
        return asked
    import torch

    from conformance.bench.child.device import check_device

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(asked)
    return asked
