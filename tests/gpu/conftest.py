"""The device that a test runs on: emulated everywhere, real where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conformance.suite import on_device
from tests.gpu import emulated

HERE = Path(__file__).parent
_ALONE = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the emulated device where nothing but these tests runs.

    It must be there before the first backward pass of the process, and once it is, FSDP takes it
    for the accelerator.
    """
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    config.stash[_ALONE] = all(place.is_relative_to(HERE) for place in asked)
    if config.stash[_ALONE] and emulated.is_possible():
        emulated.register()


@pytest.fixture
def emulation(request: pytest.FixtureRequest) -> None:
    """Skip where there is no emulated device."""
    if not emulated.is_possible():
        pytest.skip(f"torch {torch.__version__} lets no Python code be a device")
    if not request.config.stash[_ALONE]:
        pytest.skip("the emulated device wants a process of its own: run `pytest tests/gpu`")


@pytest.fixture(params=["emulated", "cuda"])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
        yield torch.device("cuda", torch.cuda.current_device())
        return
    request.getfixturevalue("emulation")
    with emulated.emulated_device() as on:
        monkeypatch.setattr(on_device, "device", lambda: on)
        yield on
