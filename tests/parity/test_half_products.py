"""Half-precision products on processors without instructions for them."""

from __future__ import annotations

import pytest
import torch

from conformance.parity.half_products import half_products_in_float32


@pytest.fixture(autouse=True)
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("product", ["mm", "addmm", "bmm", "baddbmm"])
def test_products_are_summed_in_float32_and_rounded_once(product: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = (3,) if product.startswith("b") else ()
    matrices = [torch.randn(*shape, 5, 5, dtype=dtype) for _ in range(2 + ("add" in product))]
    function = getattr(torch, product)
    with half_products_in_float32():
        found = function(*matrices)
    wanted = function(*(matrix.double() for matrix in matrices))
    assert found.dtype is dtype
    torch.testing.assert_close(found, wanted.float().to(dtype), rtol=0, atol=0)


def test_gradients_and_scalars_go_through() -> None:
    bias, left, right = (torch.randn(4, 4, dtype=torch.bfloat16) for _ in range(3))
    left.requires_grad_()
    with half_products_in_float32():
        torch.addmm(bias, left, right, beta=0.5, alpha=2).sum().backward()  # type: ignore[no-untyped-call]
    wanted = 2 * right.float().sum(1).expand(4, 4)
    assert left.grad is not None
    torch.testing.assert_close(left.grad.float(), wanted, rtol=2**-8, atol=0)


def test_other_dtypes_keep_their_kernel_and_all_is_put_back() -> None:
    left, right = torch.randn(7, 33), torch.randn(33, 5)
    before = left @ right, left.bfloat16() @ right.bfloat16()
    with half_products_in_float32():
        assert torch.equal(left @ right, before[0])
    assert torch.equal(left.bfloat16() @ right.bfloat16(), before[1])
