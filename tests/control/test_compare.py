"""What counts as a difference between a backbone and its control."""

from __future__ import annotations

import torch

from conformance.control import differences

NAN = float("nan")


def _told(
    found: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor | None = None
) -> list[str]:
    seen = None if exact is None else {"logits": exact}
    return [one.told for one in differences({"logits": found}, {"logits": wanted}, seen)]


def test_where_the_control_breaks_down_nothing_is_asked() -> None:
    plain = torch.randn(4, 8)
    broken = plain.clone()
    broken[1] = NAN
    assert not _told(plain, broken)
    assert not _told(broken, broken)
    assert not _told(plain.bfloat16(), broken.bfloat16(), plain)


def test_the_rest_is_compared_all_the_same() -> None:
    plain = torch.randn(4, 8)
    broken, other = plain.clone(), plain.clone()
    broken[1], other[3] = NAN, 0.0
    assert _told(other, broken)


def test_a_backbone_that_breaks_down_alone_is_found() -> None:
    plain = torch.randn(4, 8)
    broken = plain.clone()
    broken[1] = NAN
    assert _told(broken, plain)
    assert _told(broken.bfloat16(), plain.bfloat16(), plain)
