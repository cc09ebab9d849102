"""Which attention kernel a forward pass runs, and how the reference has to round beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.oracle import Precision

_KERNELS = {
    "flash": re.compile(r"_scaled_dot_product_flash_attention|flash_attn"),
    "efficient": re.compile(r"_scaled_dot_product_efficient_attention|_efficient_attention"),
    "cudnn": re.compile(r"_scaled_dot_product_cudnn_attention|_cudnn_attention"),
    "math": re.compile(r"aten::_safe_softmax$"),
}
"""The kernels behind `torch.nn.functional.scaled_dot_product_attention` and flash-attn's own, by
the operations that they show as."""


SDPA_KERNELS = ("flash", "efficient", "cudnn", "math")
"""The kernels that torch chooses from."""


@contextmanager
def only_kernel(name: str | None) -> Iterator[None]:
    """Let `scaled_dot_product_attention` use this kernel alone while the body runs; any with None.

    For inputs that the kernel does not take it raises what `is_refusal` recognises.
    """
    if name is None:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {
        "flash": "FLASH_ATTENTION",
        "efficient": "EFFICIENT_ATTENTION",
        "cudnn": "CUDNN_ATTENTION",
        "math": "MATH",
    }[name]
    with sdpa_kernel(getattr(SDPBackend, backend)):
        yield


def is_refusal(error: RuntimeError) -> bool:
    """Whether torch raised because the one kernel that is allowed takes no such inputs here."""
    return any(words in str(error) for words in ("No available kernel", "No viable backend"))


def attention_kernels(run: Callable[[], Any]) -> tuple[str, ...]:
    """The kernels that `run` computes attention with; none for attention in separate products."""
    seen = _Seen()
    with torch.no_grad(), seen:
        run()
    return tuple(
        name
        for name, pattern in _KERNELS.items()
        if any(pattern.search(operation) for operation in seen.operations)
    )


def precision_beside(run: Callable[[], Any], dtype: torch.dtype) -> Precision:
    """How the reference rounds beside `run` in half precision.

    Fused kernels keep scores in float32. A reference that rounds them, as eager attention does,
    would be off by a sixth to a third more than a correct subject, and rounding could grow by as
    much before the gate notices.
    """
    careful = Precision(dtype, torch.float32)
    return replace(careful, scores=torch.float32) if attention_kernels(run) else careful


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.operations.add(func.name())
        return func(*args, **(kwargs or {}))
