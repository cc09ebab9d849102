"""Two calls at once come in one order, and where a lock lets in one at a time they follow each
other."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from conformance.control import overlap


@pytest.mark.parametrize(
    ("lock", "overlap_is_seen", "expected"),
    [
        (nullcontext(), True, ["first in", "second in", "first out", "second out"]),
        (threading.Lock(), False, ["first in", "first out", "second in", "second out"]),
    ],
)
def test_the_order_of_two_calls(
    lock: Any, overlap_is_seen: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "_PATIENCE_SECONDS", 0.5)
    inside, told = torch.nn.Identity(), list[str]()

    def call(name: str) -> str:
        with lock:
            told.append(f"{name} in")
            inside(torch.zeros(1))
            told.append(f"{name} out")
        return name

    returned = overlap.overlapping(inside, lambda: call("first"), lambda: call("second"))
    assert returned == (("first", "second") if overlap_is_seen else None)
    assert told == expected
    assert not inside._forward_pre_hooks


def test_what_a_call_raises_is_returned() -> None:
    inside = torch.nn.Identity()

    def call() -> None:
        inside(torch.zeros(1))
        raise SystemExit("a thread of the subject's ends")

    returned = overlap.overlapping(inside, call, lambda: inside(torch.ones(1)))
    assert returned is not None
    assert isinstance(returned[0], SystemExit)
    assert returned[1] == 1
