"""The bounds rest on measurements: those that are shipped, and a few that are made again here."""

from __future__ import annotations

import pytest
import torch

from conformance.oracle import Decoder, Place
from conformance.parity.calibration import (
    BOUNDS,
    FAMILIES,
    readings,
    reordered,
    shipped_calibrations,
    variants,
)
from conformance.parity.equality import relative_rms
from conformance.parity.gates import CALIBRATION
from conformance.parity.probes import drawn_ids
from conformance.parity.reference import Reference
from tests.oracle.test_families import LLAMA, PHI
from tests.parity.test_modules import model

ENOUGH = 500
"""What is shipped must have been measured on this many variants, so that a refusal of one in two
hundred would have shown."""


@pytest.mark.parametrize("name", sorted(shipped_calibrations()))
def test_a_shipped_calibration_carries_the_bounds_in_force(name: str) -> None:
    shipped = shipped_calibrations()[name]
    assert shipped["calibration"] == CALIBRATION
    assert {gate: reading["bound"] for gate, reading in shipped["gates"].items()} == BOUNDS
    for reading in shipped["gates"].values():
        assert reading["worst"] <= reading["bound"]
        assert (reading["refused"], reading["variants"] >= ENOUGH) == (0, True)


def test_one_is_shipped() -> None:
    assert shipped_calibrations()


@pytest.mark.slow
def test_legitimate_variants_pass_every_gate() -> None:
    for gate, reading in readings(variants(2 * len(FAMILIES), seed=99)).items():
        assert reading.refused == 0, (gate, reading)


@pytest.mark.parametrize("config", [LLAMA, PHI], ids=["llama", "phi"])
def test_another_order_is_the_same_model(config: dict[str, object]) -> None:
    reference = Reference.of(model(config), config)
    weights = dict(reference.weights)
    changed = reordered(weights, reference.architecture, torch.Generator().manual_seed(5))
    assert not any(
        torch.equal(changed[name], matrix) for name, matrix in weights.items() if matrix.dim() == 2
    )
    ids = drawn_ids(64, 20, seed=6)
    before, after = (
        decoder.logits(decoder.embed(ids), Place.of(torch.ones_like(ids)))
        for decoder in (Decoder(reference.architecture, tensors) for tensors in (weights, changed))
    )
    assert relative_rms(after, before) < 1e-12
