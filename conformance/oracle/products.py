"""Matrix products of the reference: in half precision, their partial sums are float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_accumulation() -> Iterator[None]:
    """Let no product on a CUDA device keep partial sums in half precision while the body runs.

    cuBLAS may split a long sum and add the parts in the output's dtype, which torch allows unless
    told otherwise (https://pytorch.org/docs/stable/notes/cuda.html, reduced-precision reductions).
    A subject runs as its users run it; the reference says what rounding alone does.
    """
    matmul = torch.backends.cuda.matmul
    before = {name: _reduction(matmul, name) for name in _REDUCTIONS}
    accumulation = getattr(matmul, "allow_fp16_accumulation", None)
    try:
        for name in _REDUCTIONS:
            setattr(matmul, name, False)
        if accumulation:
            matmul.allow_fp16_accumulation = False
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)
        if accumulation:
            matmul.allow_fp16_accumulation = accumulation


_REDUCTIONS = tuple(f"allow_{dtype}_reduced_precision_reduction" for dtype in ("bf16", "fp16"))


def _reduction(matmul: Any, name: str) -> Any:
    """The setting as it must be set again: newer releases hold a second part, on splitting."""
    allowed = getattr(matmul, name)
    try:
        return allowed, getattr(matmul, f"{name}_split_k")
    except AttributeError:
        return allowed
