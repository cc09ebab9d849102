"""When two float32 computations of the same mathematics count as equal.

On one thread the references give the same bits sharded, checkpointed and plain (measured on
transformers 4.40.1 and 5.23, torch 2.13). Where sums are reordered, by threads or by more ranks,
correct backbones differ by a relative RMS of 5e-8 to 1e-5; a parameter that is left out or used
twice differs by its own size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from conformance.parity.gates import NEGLIGIBLE_GRADIENT

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


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one, in float64."""
    return {
        name: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def gradient_angles(
    observed: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """One minus the cosine between the gradients of each parameter whose expected one is not
    negligible; a gradient that is missing counts as zero."""
    largest = max(float(gradient.norm()) for gradient in expected.values())
    return {
        name: 1
        - float(
            torch.cosine_similarity(
                gradient.flatten(), observed.get(name, torch.zeros_like(gradient)).flatten(), dim=0
            )
        )
        for name, gradient in expected.items()
        if float(gradient.norm()) > NEGLIGIBLE_GRADIENT * largest
    }


def gradients_agree(observed: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two gradients of one parameter are equal up to the order of summation."""
    return relative_rms(observed, expected) <= GRADIENT_RELATIVE_RMS
