"""One module at a time, teacher-forced: each is given the reference's input, so that no error is
passed on.

The model runs as it always does; hooks replace what goes into a module and keep what comes out. The
library decides how it calls its modules, with which masks and angles, in every version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from conformance.oracle import FLOAT64, Place, Precision
from conformance.parity.gates import rms, rounding_ratio
from conformance.parity.reference import Reference


@torch.no_grad()
def module_errors(
    llm: Any,
    reference: Reference,
    run: Callable[[], Any],
    embedded: torch.Tensor,
    place: Place,
    precision: Precision | None = None,
) -> dict[str, float]:
    """Each module's error by its path in the model, in the order of computation; a layer comes
    after its parts.

    `run` calls the model on the batch that `embedded` (batch, sequence, hidden) and `place`
    describe. With a `precision` the errors are ratios to the reference module's own in that dtype
    (gate 3), without one they are relative RMS (gate 1). Padding is left out. Modules that the
    model does not have under these names are left out too.
    """
    exact = reference.decoder(FLOAT64)
    inputs: dict[str, torch.Tensor] = {}
    exact.logits(
        embedded, place, lambda path, given, made: inputs.setdefault(path, given), tokens=_NO_TOKENS
    )
    own = set(dict(llm.named_modules()))
    computed = {
        path: module
        for path, module in exact.modules(place).items()
        if reference.prefix + path in own
    }
    dtype = next(llm.parameters()).dtype
    given = {path: inputs[path].to(dtype) for path in computed}
    layers = set(filter(_is_layer, computed))
    # With its modules forced, a layer's output would not show how it adds up what they made.
    made = _outputs(llm, reference.prefix, {path: given[path] for path in layers}, run) | _outputs(
        llm, reference.prefix, {path: given[path] for path in computed.keys() - layers}, run
    )
    rounded = reference.decoder(precision).modules(place) if precision else {}
    errors = {}
    for path, module in computed.items():
        if path in made:
            truth = module(given[path].to(torch.float64))[place.mask]
            observed = made[path][place.mask]
            errors[path] = (
                rounding_ratio(observed, truth, rounded[path](given[path])[place.mask])
                if precision
                else rms(observed.double() - truth) / rms(truth)
            )
    return errors


def first_outside(errors: Mapping[str, float], bound: float) -> tuple[str, float] | None:
    """The first module whose error exceeds `bound`, innermost first, and that error; None if all
    are within."""
    return next(((path, error) for path, error in errors.items() if not error <= bound), None)


@torch.no_grad()
def error_growth(
    llm: Any,
    reference: Reference,
    run: Callable[[], Any],
    embedded: torch.Tensor,
    place: Place,
    precision: Precision,
) -> list[dict[str, Any]]:
    """How errors add up from layer to layer: relative RMS of each layer's output against float64,
    in the model and in the reference run in the same dtype, each with its own inputs. Arguments as
    in `module_errors`."""
    exact, own = (
        _layer_outputs(reference, FLOAT64, embedded, place),
        _layer_outputs(reference, precision, embedded, place),
    )
    own_modules = dict(llm.named_modules())
    paths = [path for path in exact if reference.prefix + path in own_modules]
    made: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for path in paths:
            handle = own_modules[reference.prefix + path].register_forward_hook(_keep(made, path))
            hooks.callback(handle.remove)
        run()

    def error(output: torch.Tensor, path: str) -> float:
        return rms((output.double() - exact[path])[place.mask]) / rms(exact[path][place.mask])

    return [
        {"layer": path, "subject": error(made[path], path), "reference": error(own[path], path)}
        for path in paths
        if path in made
    ]


def _layer_outputs(
    reference: Reference, precision: Precision, embedded: torch.Tensor, place: Place
) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    reference.decoder(precision).hidden(
        embedded,
        place,
        lambda path, given, made: outputs.update({path: made} if _is_layer(path) else {}),
    )
    return outputs


def _is_layer(path: str) -> bool:
    return path.rpartition(".")[2].isdigit()


def _keep(made: dict[str, torch.Tensor], path: str) -> Callable[..., None]:
    def keep_output(module: Any, args: Any, output: Any) -> None:
        made[path] = (output[0] if isinstance(output, tuple) else output).detach()

    return keep_output


@contextmanager
def forced(
    llm: Any, prefix: str, given: Mapping[str, torch.Tensor], made: dict[str, torch.Tensor]
) -> Iterator[None]:
    """While the body runs, the modules at the paths of `given` are given those tensors, and `made`
    gets their outputs."""

    def give(path: str) -> Callable[..., Any]:
        def replace_input(module: Any, args: Any, kwargs: Any) -> Any:
            return with_hidden(args, kwargs, given[path])

        return replace_input

    with ExitStack() as hooks:
        for path in given:
            module = llm.get_submodule(prefix + path)
            for handle in (
                module.register_forward_pre_hook(give(path), with_kwargs=True),
                module.register_forward_hook(_keep(made, path)),
            ):
                hooks.callback(handle.remove)
        yield


def hidden_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The hidden states that a module is called with: its first tensor, positional or under any
    name."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


def with_hidden(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other hidden states, which come first if there are positional
    arguments."""
    if args:
        return (hidden, *args[1:]), dict(kwargs)
    name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
    return args, {**kwargs, name: hidden}


_NO_TOKENS = torch.empty(0, dtype=torch.long)


def _outputs(
    llm: Any, prefix: str, given: Mapping[str, torch.Tensor], run: Callable[[], Any]
) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    with forced(llm, prefix, given, made):
        run()
    return made
