"""The reference's own products keep partial sums in float32; nobody else's settings change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from conformance.oracle import BFLOAT16, Place
from conformance.oracle.products import float32_accumulation
from conformance.parity.probes import drawn_ids
from conformance.parity.reference import Reference
from tests.oracle.test_families import LLAMA
from tests.parity.test_modules import model

MATMUL = torch.backends.cuda.matmul


def test_every_product_of_the_reference_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    linear = functional.linear

    def watched(*args: Any) -> torch.Tensor:
        allowed.append(MATMUL.allow_bf16_reduced_precision_reduction)
        return linear(*args)

    monkeypatch.setattr(functional, "linear", watched)
    decoder = Reference.of(model(LLAMA), LLAMA).decoder(BFLOAT16)
    ids = drawn_ids(64, 8, seed=1)
    decoder.logits(decoder.embed(ids), Place.of(torch.ones_like(ids)))
    assert len(allowed) > 10
    assert not any(allowed)
    assert MATMUL.allow_bf16_reduced_precision_reduction


@pytest.mark.parametrize("setting", [True, False])
def test_the_setting_is_put_back(setting: bool) -> None:
    try:
        MATMUL.allow_bf16_reduced_precision_reduction = setting
        with pytest.raises(ZeroDivisionError), float32_accumulation():
            1 / int(MATMUL.allow_bf16_reduced_precision_reduction)
        assert MATMUL.allow_bf16_reduced_precision_reduction is setting
    finally:
        MATMUL.allow_bf16_reduced_precision_reduction = True
