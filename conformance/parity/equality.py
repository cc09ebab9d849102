"""When two float32 computations of the same mathematics count as equal.

Reordered sums round differently, so equality is calibrated: sharded, checkpointed and plain gradients of correct
backbones differ by relative RMS 5e-8 to 1e-5 (measured over the reference families), planted defects by 1e-2 and more.
"""

from __future__ import annotations

import torch

#: The largest legitimate relative RMS seen is 1e-5; the bound leaves a factor of ten.
GRADIENT_RELATIVE_RMS = 1e-4


def relative_rms(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of ``expected``; infinite where the shapes differ or ``expected`` is zero and
    ``observed`` is not."""
    if observed.shape != expected.shape:
        return float("inf")
    difference = (observed.double() - expected.double()).pow(2).mean().sqrt().item()
    scale = expected.double().pow(2).mean().sqrt().item()
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


def gradients_agree(observed: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two gradients of one parameter are equal up to the order of summation."""
    return relative_rms(observed, expected) <= GRADIENT_RELATIVE_RMS
