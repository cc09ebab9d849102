"""The bounds rest on measurements: those that are shipped, and a few that are made again here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conformance.oracle import Decoder, Place
from conformance.parity import gates
from conformance.parity.calibration import FAMILIES, as_json, readings, reordered, variants
from conformance.parity.equality import relative_rms
from conformance.parity.gates import BOUNDS, CALIBRATION, calibration_for, conditions, kind_of
from conformance.parity.probes import drawn_ids
from conformance.parity.reference import Reference
from conformance.places import fixtures_directory
from tests.oracle.test_families import LLAMA, PHI
from tests.parity.test_modules import model

ENOUGH = 500
"""What is shipped must have been measured on this many variants, so that a refusal of one in two
hundred would have shown."""


SHIPPED = sorted((fixtures_directory() / "calibration").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_calibration_carries_the_bounds_in_force(path: Path) -> None:
    shipped = json.loads(path.read_text(encoding="utf-8"))
    kind = shipped["environment"]["device"]
    assert path.name == f"{kind}-transformers-{shipped['environment']['transformers']}.json"
    assert shipped["calibration"] == CALIBRATION
    bounds = {gate: reading["bound"] for gate, reading in shipped["gates"].items()}
    assert bounds.keys() == BOUNDS.keys()
    assert kind != "cpu" or bounds == BOUNDS
    for reading in shipped["gates"].values():
        assert reading["worst"] <= reading["bound"]
        assert (reading["refused"], reading["variants"] >= ENOUGH) == (0, True)


def test_the_cpu_has_one_of_its_own() -> None:
    assert calibration_for("cpu").is_own
    assert str(calibration_for("cpu")) == "cpu"


def test_another_device_does_not_take_the_cpus_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    found = calibration_for("cuda")
    assert kind_of("cuda") == "nvidia-h100-80gb-hbm3"
    assert (found.is_own, found.bounds) == (False, BOUNDS)
    assert conditions(torch.bfloat16, "cuda")["calibrated on"] == "cpu, none for this device"


def test_a_device_with_a_calibration_has_its_own_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = as_json(readings(variants(3)), 0)
    document["gates"]["rounding ratio"]["bound"] = 1.2
    (tmp_path / "calibration").mkdir()
    place = tmp_path / "calibration" / "a-card-transformers-5.23.0.json"
    place.write_text(json.dumps(document))
    monkeypatch.setattr(gates, "fixtures_directory", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    gates.shipped_calibration.cache_clear()
    try:
        found = calibration_for("cuda")
    finally:
        gates.shipped_calibration.cache_clear()
    assert (str(found), found.bounds["rounding ratio"]) == ("a-card", 1.2)
    assert found.bounds["module ratio"] == BOUNDS["module ratio"]


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
