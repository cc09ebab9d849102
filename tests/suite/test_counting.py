"""How often a layer computes is counted on what of it runs, whatever its code calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from conformance.suite.test_training import _counted


class Called(nn.Module):
    """Calls both of its linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x).tanh())
        return out


class ReadsTheFirst(Called):
    """Uses the first one's weight, and does not call it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(nn.functional.linear(x, self.first.weight).tanh())
        return out


class ReadsBoth(Called):
    """Calls neither."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.linear(x, self.first.weight).tanh()
        return nn.functional.linear(hidden, self.second.weight)


@pytest.mark.parametrize("kind", [Called, ReadsTheFirst, ReadsBoth])
@pytest.mark.parametrize(("recomputed", "expected"), [(False, 1), (True, 2)])
def test_recomputation_is_counted(kind: type[Called], recomputed: bool, expected: int) -> None:
    layers: list[nn.Module] = [kind(), kind()]
    x = torch.ones(1, 4, requires_grad=True)
    with _counted(layers) as calls:
        for layer in layers:
            x = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
        x.sum().backward()
    assert dict(calls) == {0: expected, 1: expected}
    assert not any(module._forward_pre_hooks for layer in layers for module in layer.modules())
