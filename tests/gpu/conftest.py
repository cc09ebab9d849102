"""The device that a test runs on: emulated everywhere, real where there is one.

The emulated device must be registered before the first backward pass of its process, and once it
is, FSDP takes it for the accelerator. So tests on it run where nothing but `tests/gpu` does:
`pytest tests/gpu`. Elsewhere they are left out, and `test_alone.py` runs them in another process.
Beside a CUDA device it is not registered: torch would take it first.
"""

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
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    config.stash[_ALONE] = all(place.is_relative_to(HERE) for place in asked)
    if config.stash[_ALONE] and emulated.is_possible() and not torch.cuda.is_available():
        emulated.register()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(HERE)]
    runs_others = [item for item in here if item.path.name == "test_alone.py"]
    on_it = [item for item in here if "emulation" in _fixtures(item)]
    left_out = set(runs_others if config.stash[_ALONE] else on_it)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _fixtures(item: pytest.Item) -> set[str]:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    emulation = {"emulation"} if parameters.get("device") == "emulated" else set()
    return emulation | set(getattr(item, "fixturenames", ()))


@pytest.fixture
def emulation() -> None:
    """Skip where there is no emulated device."""
    if not emulated.is_possible():
        pytest.skip(f"torch {torch.__version__} lets no Python code be a device")
    if torch.cuda.is_available():
        pytest.skip("nothing is emulated where there is a CUDA device")


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
