"""Matrix products in half precision on processors that have no instructions for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_HALVES = (torch.bfloat16, torch.float16)
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
"""The operations that `linear`, `matmul` and `einsum` end in, forward and backward."""


def has_half_products() -> bool:
    """Whether the processor has instructions for products in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_be_widened() -> bool:
    """Whether torch (2.10 and later) can say which kernel it would have run, so that
    `half_products_in_float32` can put another in its place."""
    return hasattr(torch.library, "get_kernel")


@contextmanager
def half_products_in_float32() -> Iterator[None]:
    """Multiply half-precision matrices on the CPU in float32, and round once, while the body runs.

    Nothing happens where the processor has instructions for bfloat16, or where torch (before 2.10)
    cannot say which kernel it would have run. Elsewhere torch multiplies half-precision matrices in
    a loop of its own, at 0.6 GFLOP/s (docs/performance.md). That loop too sums in float32 and
    rounds the sum once: what differs is the order of the additions, as between any two processors.
    """
    if has_half_products() or not can_be_widened():
        yield
        return
    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():
            # torch warns that a kernel is replaced, which is what is wanted.
            warnings.simplefilter("ignore")
            for product in _PRODUCTS:
                library.impl(product, _widened(product), "CPU", with_keyset=True)
        yield


def _widened(product: str) -> Any:
    operation = getattr(torch.ops.aten, product).default
    kernel = torch.library.get_kernel(f"aten::{product}", "CPU")

    def multiply(keys: Any, *matrices: torch.Tensor, **scalars: Any) -> Any:
        dtype = matrices[0].dtype
        if dtype not in _HALVES:
            return kernel.call_boxed(keys, *matrices, **scalars)
        return operation(*(matrix.float() for matrix in matrices), **scalars).to(dtype)

    return multiply
