"""Where what a backbone returned differs from what its control returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from conformance.control.calls import CallRefused, Observation
from conformance.parity.equality import GRADIENT_RELATIVE_RMS, relative_rms
from conformance.parity.gates import GRADIENT_ROUNDING, SEMANTICS, rms

POSITION = 5 * SEMANTICS
"""Gate 1 for a single position: errors of one are larger than their mean over many."""
HALF_GRADIENT, HALF_NEGLIGIBLE = 0.5, 0.1
"""How far a gradient that went through half precision may lie from the control's, over its size, or
over this share of the largest one: far above rounding, and below a part that is missing."""
HALF_DISTANCE = 1.6
"""How far a half-precision result may lie from the control's, over the control's own rounding
error: two independent roundings of one computation are √2 apart."""


@dataclass(frozen=True)
class Difference:
    """One difference. `quantity` is what differs: logits, loss, a cache, …"""

    quantity: str
    told: str
    value: float
    bound: float


def differences(
    observed: Observation, expected: Observation, exact: Observation | None = None
) -> Iterator[Difference]:
    """The differences between two observations of one call.

    With `exact`, what the control returns in float32, both are half-precision results; the distance
    between them is measured in roundings. Where the control is not finite, nothing is compared: of
    a batch whose labels are all ignored the loss is no number, say.

    Raises:
        CallRefused: the control's logits are finite nowhere, so that the call says nothing.
    """
    whole = expected.get("logits")
    if isinstance(whole, torch.Tensor) and whole.numel() and not whole.isfinite().any():
        raise CallRefused("the control's logits are finite nowhere")
    for name, wanted in expected.items():
        found: Any = observed.get(name)
        reference: Any = None if exact is None else exact.get(name)
        if name.startswith("gradients"):
            yield from _gradients(found, wanted, rounded=name != "gradients")
        elif isinstance(wanted, torch.Tensor):
            yield from _tensors(name, found, wanted, reference)
        elif isinstance(wanted, list):
            yield from _lists(name, found, wanted, reference)
        elif found != wanted:
            yield Difference(name, f"{name}: {found!r}, and the control {wanted!r}", 1.0, 0.0)


def same(observed: Observation, expected: Observation) -> bool:
    """Whether two observations agree in everything, bit for bit: then no bound is needed. Gradients
    of parameters with other names do not."""
    return bool(expected) and all(
        _same(observed.get(name), wanted) for name, wanted in expected.items()
    )


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, torch.Tensor):
        return (
            isinstance(found, torch.Tensor)
            and (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            and torch.equal(found, wanted)
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
        )
    if isinstance(wanted, dict):  # gradients
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(_same(found[name], one) for name, one in wanted.items())
        )
    return bool(found == wanted)


def _lists(
    name: str,
    found: list[torch.Tensor] | None,
    wanted: list[torch.Tensor],
    exact: list[torch.Tensor] | None,
) -> Iterator[Difference]:
    if found is None or len(found) != len(wanted):
        count = "no" if found is None else str(len(found))
        yield Difference(name, f"{count} {name}, and the control has {len(wanted)}", 1.0, 0.0)
        return
    for index, tensor in enumerate(wanted):
        reference = None if exact is None else exact[index]
        one = next(_tensors(name, found[index], tensor, reference), None)
        if one is not None:
            yield Difference(name, f"{one.told} (number {index})", one.value, one.bound)
            return


def _tensors(
    name: str, found: object, wanted: torch.Tensor, exact: torch.Tensor | None
) -> Iterator[Difference]:
    if not isinstance(found, torch.Tensor) or found.shape != wanted.shape:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else None
        yield Difference(
            name,
            f"the {name} {_are(name)} of shape {shape}, the control's {tuple(wanted.shape)}",
            1.0,
            0.0,
        )
        return
    if found.dtype != wanted.dtype:
        yield Difference(
            name,
            f"the {name} {_are(name)} in {found.dtype}, the control's in {wanted.dtype}",
            1.0,
            0.0,
        )
        return
    seen: torch.Tensor = found
    finite = wanted.isfinite() if exact is None else wanted.isfinite() & exact.isfinite()
    if not finite.any():
        return
    if not finite.all():
        # The library itself breaks down there (StableLM in transformers 4.57 under autocast).
        seen, wanted = seen.masked_fill(~finite, 0.0), wanted.masked_fill(~finite, 0.0)
        exact = None if exact is None else exact.masked_fill(~finite, 0.0)
    if exact is not None:
        own = rms(wanted.double() - exact.double())
        apart = rms(seen.double() - wanted.double())
        distance = apart / own if own else (0.0 if apart == 0 else float("inf"))
        if not distance <= HALF_DISTANCE:
            yield Difference(
                name,
                f"the {name} {_are(name)} {distance:.3g} times as far from the control's as "
                "rounding moves those",
                distance,
                HALF_DISTANCE,
            )
        return
    error = relative_rms(seen, wanted)
    if not error <= SEMANTICS:
        yield Difference(
            name,
            f"the {name} {_are(name)} off by a relative RMS of {error:.2g}",
            error,
            SEMANTICS,
        )
        return
    if seen.dim() < 2:
        return
    scale = rms(wanted)
    by_place = (seen.double() - wanted.double()).pow(2).mean(-1).sqrt()
    worst = float(by_place.max()) / scale if scale else float(by_place.max())
    if not worst <= POSITION:
        place = int(by_place.argmax())
        yield Difference(
            name,
            f"the {name} {_are(name)} off by {worst:.2g} at one place (real position {place})",
            worst,
            POSITION,
        )


def _are(name: str) -> str:
    return "is" if name.startswith("loss") else "are"


def _gradients(
    found: Mapping[str, torch.Tensor | None] | None,
    wanted: Mapping[str, torch.Tensor | None],
    *,
    rounded: bool,
) -> Iterator[Difference]:
    """Differences between the gradients of parameters of the same name: code of its own may name
    some otherwise, but not the input embedding and the head. Of `rounded` ones, from half
    precision, only what is more than rounding counts."""
    expected = {
        name: gradient
        for name, gradient in wanted.items()
        if gradient is not None and found is not None and name in found
    }
    finite = {name: gradient for name, gradient in expected.items() if gradient.isfinite().all()}
    if expected and not finite:
        return
    expected = finite
    if found is None or not expected:
        raise ValueError(
            "there is no gradient to compare: of all parameters none has the same name"
        )
    missing = [name for name in expected if found[name] is None]
    if missing:
        yield Difference(
            "gradients",
            f"{len(missing)} parameters have no gradient, and the control's do; the first is "
            f"{missing[0]}",
            1.0,
            0.0,
        )
        return
    largest = max(float(gradient.norm()) for gradient in expected.values())
    bound, negligible = (
        (HALF_GRADIENT, HALF_NEGLIGIBLE) if rounded
        else (GRADIENT_RELATIVE_RMS, GRADIENT_ROUNDING / GRADIENT_RELATIVE_RMS)
    )  # fmt: skip
    for name, gradient in expected.items():
        seen = found[name]
        assert seen is not None
        apart = float((seen.float() - gradient.float()).norm())
        scale = max(float(gradient.norm()), negligible * largest)
        error = apart / scale if scale else 0.0
        if not error <= bound:
            yield Difference(
                "gradients",
                f"the gradient of {name} differs by {error:.2g} of its size",
                error,
                bound,
            )
            return
