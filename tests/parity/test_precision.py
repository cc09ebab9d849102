"""Settings of float32 products survive being overridden, whichever of torch's two interfaces set
them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from conformance.parity.precision import (
    float32_settings,
    full_float32,
    restore_float32_settings,
)

MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn
BACKENDS: Any = torch.backends
pytestmark = pytest.mark.skipif(
    not hasattr(MATMUL, "fp32_precision"), reason="this torch has the older interface alone"
)


def setting(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


STEPS: dict[str, Callable[[], None]] = {
    **{
        f"products {value}": setting(MATMUL, "fp32_precision", value)
        for value in ("tf32", "ieee", "none")
    },
    **{
        f"precision {value}": lambda value=value: torch.set_float32_matmul_precision(value)  # type: ignore[misc]
        for value in ("highest", "high", "medium")
    },
    "everything tf32": setting(BACKENDS, "fp32_precision", "tf32"),
    "TF32 allowed": setting(MATMUL, "allow_tf32", True),
    "no TF32 in cuDNN": setting(CUDNN, "allow_tf32", False),
    "convolutions tf32": lambda: setattr(CUDNN.conv, "fp32_precision", "tf32"),
    "cuDNN ieee": setting(CUDNN, "fp32_precision", "ieee"),
}


@pytest.fixture(autouse=True)
def settings_put_back() -> Iterator[None]:
    before = float32_settings()
    BACKENDS.fp32_precision = "none"  # whatever tests before left
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    yield
    BACKENDS.fp32_precision = "none"
    restore_float32_settings(before)


def readings() -> dict[str, Any]:
    """What a program reads by either interface; None where torch refuses."""

    def read(get: Callable[[], Any]) -> Any:
        try:
            return get()
        except RuntimeError:
            return None

    return {
        "allow_tf32": read(lambda: MATMUL.allow_tf32),
        "float32_matmul_precision": read(torch.get_float32_matmul_precision),
        "cudnn.allow_tf32": read(lambda: CUDNN.allow_tf32),
        **{str(owner): owner.fp32_precision for owner in (MATMUL, CUDNN, CUDNN.conv, CUDNN.rnn)},
    }


@pytest.mark.parametrize(
    "steps",
    [*((step,) for step in STEPS), *itertools.permutations(STEPS, 2)],
    ids=", then ".join,
)
def test_what_was_set_is_put_back(steps: tuple[str, ...]) -> None:
    for step in steps:
        try:
            STEPS[step]()
        except RuntimeError:
            pytest.skip("torch refuses the second after the first")
    before = readings()
    with full_float32():
        inside = readings()
        assert inside["allow_tf32"] is False
        assert inside["float32_matmul_precision"] == "highest"
        assert MATMUL.fp32_precision == "ieee"
    assert readings() == before


def test_it_is_put_back_after_an_exception() -> None:
    MATMUL.fp32_precision = "tf32"
    with pytest.raises(ZeroDivisionError), full_float32():
        1 / 0  # noqa: B018
    assert MATMUL.fp32_precision == "tf32"
