"""The three gates that say whether two forward passes compute the same thing.

No bound is tuned by hand: each was calibrated on legitimate variants of one computation
(`conformance.parity.calibration` runs it again; the data lies in `fixtures/calibration`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from conformance.places import fixtures_directory

CALIBRATION = 2
"""Counts the changes to a bound, or to what it is measured on; the shipped data names it."""
SEMANTICS = 1e-5
"""Gate 1, semantics: relative RMS of a float64 or float32 subject against the float64 reference.
Correct Hugging Face code stays below 3.2e-6, as its norms and angles are float32 in any case; a
rotary theta off by one per cent is at 9.8e-5."""
EXACT_POSITIONS = 1024
"""Gate 1 holds as it stands up to this position; farther out the float32 angles themselves are off,
in proportion."""
ANGLE_SENSITIVITY = 0.5
"""How much of an angle's error may show in the logits."""
ROUNDING_RATIO = 1.15
"""Gate 2, rounding: error of a half-precision subject over the reference's own in the same dtype.
"""
MODULE_RATIO = 1.15
"""Gate 3, modules: the same for one module that is given the reference's input."""
GRADIENT_COSINE = 0.99
"""Cosine between a parameter's gradient in half precision and in float32."""
NEGLIGIBLE_GRADIENT = 1e-4
"""A share of the largest parameter gradient's norm: smaller gradients are rounding alone, such as
those of keys' biases, which cancel."""
GRADIENT_ROUNDING = 1e-6
"""What rounding leaves in float32 of a gradient that cancels, over the largest parameter gradient's
norm: sixteen roundings. Of a text of one token the gradients of queries and keys are this alone."""
MEMORY_RATIO = 1.5
"""The bound on what a forward takes beside the weights, over what it must hold: what cuBLAS keeps
to work in (32 MiB on Hopper) is a seventh of that for Mistral-7B over 2,048 tokens, and a cache
that is kept doubles it."""
ROUNDING_LENGTH = 512
"""Shorter sequences have too few logits, or too short sums, for gate 2 to detect what it should."""


def semantics_bound(position: int) -> float:
    """Gate 1's bound for a sequence that ends at `position`.

    An angle of p radians is off by up to p · 2⁻²⁴ in float32; how much of that shows in the logits
    is calibrated.
    """
    return (
        SEMANTICS
        if position <= EXACT_POSITIONS
        else SEMANTICS + ANGLE_SENSITIVITY * position * 2.0**-24
    )


BOUNDS = {
    "semantics": SEMANTICS,
    "share of the angles' error at far positions": ANGLE_SENSITIVITY,
    "rounding ratio": ROUNDING_RATIO,
    "module ratio": MODULE_RATIO,
    "one minus cosine of gradients": 1 - GRADIENT_COSINE,
}
"""The calibrated bounds, by gate, as measured on CPUs. A device with a calibration of its own may
have others."""


@dataclass(frozen=True)
class Calibration:
    """What the bounds on one device rest on. `kind` is the device they were measured on, and
    `is_own` says whether that is the device itself."""

    kind: str
    is_own: bool
    bounds: Mapping[str, float]

    def __str__(self) -> str:
        return self.kind if self.is_own else f"{self.kind}, none for this device"


def kind_of(device: torch.device | str) -> str:
    """The name that calibrations go by: `cpu`, or a CUDA device's as its driver has it, in lower
    case with dashes."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return "-".join(name.lower().split())


def calibration_for(device: torch.device | str) -> Calibration:
    """The calibration whose bounds hold on `device`: its kind's own, or else the CPU's."""
    kind = kind_of(device)
    shipped = shipped_calibration(kind)
    if shipped is None:
        return Calibration("cpu", False, BOUNDS)
    own = {gate: reading["bound"] for gate, reading in shipped["gates"].items()}
    return Calibration(kind, True, {**BOUNDS, **own})


@cache
def shipped_calibration(kind: str) -> dict[str, Any] | None:
    """The calibration of this kind that comes with the project: the newest, None without one."""
    files = sorted((fixtures_directory() / "calibration").glob(f"{kind}-transformers-*.json"))
    return json.loads(files[-1].read_text(encoding="utf-8")) if files else None


def conditions(dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """The conditions of a gate's reading, for the record: the calibration of its bound, the
    subject's dtype and device."""
    return {
        "calibration": CALIBRATION,
        "calibrated on": str(calibration_for(device)),
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(device).type,
    }


def rms(tensor: torch.Tensor) -> float:
    """Root mean square over all elements, taken in float64."""
    return float(tensor.double().pow(2).mean().sqrt())


def rounding_ratio(observed: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor) -> float:
    """RMS error of `observed` over that of `rounded`, the reference in the same dtype, both against
    `exact`.

    If the reference makes no error at all (an embedding, say), the ratio is 1 for equal values,
    else infinite.
    """
    error, own = rms(observed.double() - exact.double()), rms(rounded.double() - exact.double())
    if own == 0:
        return 1.0 if error == 0 else float("inf")
    return error / own
