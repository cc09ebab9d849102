"""When two float32 computations of the same mathematics count as equal.

On one thread the references give the same bits sharded, checkpointed and plain (measured on
transformers 4.40.1 and 5.23, torch 2.13). Where sums are reordered, by threads or by more ranks,
correct backbones differ by a relative RMS of 5e-8 to 1e-5; a parameter that is left out or used
twice differs by its own size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from conformance.parity.gates import GRADIENT_ROUNDING, NEGLIGIBLE_GRADIENT

GRADIENT_RELATIVE_RMS = 1e-4
"""The largest legitimate relative RMS known is 1e-5; the bound leaves a factor of ten."""


def relative_rms(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of `expected`; infinite where the shapes differ or `expected`
    is zero and `observed` is not."""
    if observed.shape != expected.shape:
        return float("inf")
    difference = (observed.double() - expected.double()).pow(2).mean().sqrt().item()
    scale = expected.double().pow(2).mean().sqrt().item()
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


_WRAPPER = "_checkpoint_wrapped_module."
"""What torch's activation checkpointing puts into the names of parameters, and leaves out of those
of a state dict."""


def parameters_by_name(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters, by the names that a state dict has for them."""
    return {name.replace(_WRAPPER, ""): one for name, one in model.named_parameters()}


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one, in float64."""
    return {
        name: parameter.grad.double()
        for name, parameter in parameters_by_name(model).items()
        if parameter.grad is not None
    }


def gradient_angles(
    observed: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """One minus the cosine between the gradients of each parameter whose expected one is not
    negligible; a gradient that is missing counts as zero."""
    return {
        name: 1
        - float(
            torch.cosine_similarity(
                gradient.flatten(), observed.get(name, torch.zeros_like(gradient)).flatten(), dim=0
            )
        )
        for name, gradient in _considerable(expected).items()
    }


def worst_gradient(
    observed: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> tuple[float, str]:
    """The largest distance between the gradients of one parameter, over the size of the expected
    one, and its name, among those whose expected one is not negligible; what rounding may leave of
    the largest parameter's is below `GRADIENT_RELATIVE_RMS`.

    Raises:
        KeyError: if one of these is not observed.
        ValueError: if nothing is expected.
    """
    considerable = _considerable(expected)
    # Rounding adds to what cancels as much as to what does not.
    least = (
        GRADIENT_ROUNDING
        / GRADIENT_RELATIVE_RMS
        * max(float(gradient.norm()) for gradient in considerable.values())
    )
    errors = {
        name: relative_rms(observed[name], gradient)
        * min(1.0, float(gradient.norm()) / least if least else 1.0)
        for name, gradient in considerable.items()
    }
    # NaN is the worst, wherever it stands.
    return max((math.inf if math.isnan(error) else error, name) for name, error in errors.items())


def _considerable(gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients that are more than rounding beside the largest, or NaN."""
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    least = NEGLIGIBLE_GRADIENT * max(norms.values())
    return {name: gradient for name, gradient in gradients.items() if not norms[name] <= least}


def gradients_agree(observed: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two gradients of one parameter are equal up to the order of summation."""
    return relative_rms(observed, expected) <= GRADIENT_RELATIVE_RMS
