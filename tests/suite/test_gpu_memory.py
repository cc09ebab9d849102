"""What GPU-06 holds a forward to, by hand."""

from __future__ import annotations

import torch

from conformance.hub import recipe_for
from conformance.oracle import architecture_of
from conformance.parity.reference import Reference
from conformance.suite.models import published_shapes
from conformance.suite.test_gpu import activation_bytes


def published(hub_id: str) -> Reference:
    config = recipe_for(hub_id).config
    weights = {
        name: torch.empty(shape, device="meta") for name, shape in published_shapes(config).items()
    }
    return Reference(architecture_of(config), weights)


def test_the_widest_moment_of_mistral_is_in_an_mlp() -> None:
    mistral = published("mistralai/Mistral-7B-v0.1")
    residual, inner = 2048 * 4096 * 2, 2048 * 14336 * 2
    assert 4 * residual + 3 * inner == 243_269_632
    assert activation_bytes(mistral, 2048, 2, 2) == 243_269_632


def test_float32_logits_that_the_library_returns_are_counted() -> None:
    mistral = published("mistralai/Mistral-7B-v0.1")
    # Half-precision logits and their float32 copy, beside one residual.
    assert activation_bytes(mistral, 2048, 2, 4) == 2048 * 4096 * 2 + 2048 * 32000 * (2 + 4)


def test_a_plain_mlp_holds_two() -> None:
    phi = published("microsoft/phi-2")
    residual, inner, logits = 512 * 2560 * 2, 512 * 10240 * 2, 512 * 51200 * 2
    assert activation_bytes(phi, 512, 2, 2) == max(4 * residual + 2 * inner, residual + logits)
