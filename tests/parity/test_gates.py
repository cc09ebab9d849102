"""The gates' arithmetic, on numbers small enough to check by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from conformance.assertions import ClauseFailure, listening, tell, within
from conformance.parity.gates import SEMANTICS, rms, rounding_ratio, semantics_bound


def test_rms() -> None:
    assert rms(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(
    ("observed", "rounded", "ratio"),
    [
        ([1.2, 1.0], [1.1, 1.0], 2.0),
        ([1.1, 1.0], [1.1, 1.0], 1.0),
        ([1.0, 1.0], [1.1, 1.0], 0.0),
        ([1.0, 1.0], [1.0, 1.0], 1.0),
        ([1.1, 1.0], [1.0, 1.0], math.inf),
    ],
)
def test_rounding_ratio(observed: list[float], rounded: list[float], ratio: float) -> None:
    exact = torch.ones(2, dtype=torch.float64)
    found = rounding_ratio(torch.tensor(observed).double(), exact, torch.tensor(rounded).double())
    assert found == pytest.approx(ratio)


def test_the_bound_grows_with_the_error_of_angles() -> None:
    assert semantics_bound(1) == semantics_bound(1024) == SEMANTICS
    # At 2**24 an angle is off by a whole radian.
    assert semantics_bound(2**24) == pytest.approx(0.5 + SEMANTICS)


def judged(value: float, bound: float = 1.0) -> None:
    within("a thing", value, bound, observed="seen", expected="less", mend="mend it")


def test_what_is_measured_is_told_at_its_worst() -> None:
    with listening() as found:
        judged(0.25)
        judged(1.0, bound=2.0)
        judged(0.125)
        tell("more", [1, 2])
    assert found == {
        "measured": {"a thing": {"worst": 1.0, "bound": 2.0, "measured": 3}},
        "more": [1, 2],
    }


@pytest.mark.parametrize("value", [1.5, math.inf, math.nan])
def test_what_is_outside_fails_and_is_told(value: float) -> None:
    with listening() as found, pytest.raises(ClauseFailure) as failure:
        judged(value)
    assert found["measured"]["a thing"]["measured"] == 1
    assert failure.value.evidence["bound"] == 1.0
    assert json.loads(json.dumps(failure.value.evidence, allow_nan=False))["value"] == (
        value if math.isfinite(value) else str(value)
    )
    json.dumps(found, allow_nan=False)


def test_nothing_is_kept_outside_a_clause() -> None:
    judged(0.5)
    tell("more", 1)
    with listening() as found:
        pass
    assert found == {}
