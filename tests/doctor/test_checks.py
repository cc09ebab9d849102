"""Checks that can be made in this process: a device that is there and does not compute, and places
in every state."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.doctor import checks


def test_a_device_that_does_not_compute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a device, which computes")
    card = SimpleNamespace(name="Some card", total_memory=8 << 30, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    (device,) = checks.cuda({})["devices"]
    assert device["trouble"]
    assert (device["capability"], device["bfloat16"], device["freeBytes"]) == ("7.5", False, None)


def test_a_hub_that_is_not_there_yet_would_be_made_above(tmp_path: Path) -> None:
    facts = checks.hub({"hub": str(tmp_path / "not" / "yet")})
    assert facts["writable"]
    assert facts["entries"] == 0
    assert {one["built"] for one in facts["checkpoints"]} == {None}
    assert not (tmp_path / "not").exists()
