"""Float32 with all its bits: products and convolutions on a CUDA device without TF32.

torch has two interfaces to the same settings. After a program uses the newer one
(`fp32_precision`, torch 2.9), the older one (`allow_tf32`, `get_float32_matmul_precision`) may
raise when it is read, and what is put back by the older alone leaves the newer in another state
(https://pytorch.org/docs/stable/notes/cuda.html#tf32-on-ampere).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

_PRECISION = "float32 matmul precision"
_ALLOWED = "TF32 in CUDA products"
_ALLOWED_IN_CUDNN = "TF32 in cuDNN"


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in float32 while the body runs; every setting is put back after, as
    either interface reads it."""
    before = float32_settings()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for owner in _owners().values():
        owner.fp32_precision = "ieee"
    try:
        yield
    finally:
        restore_float32_settings(before)


def float32_settings() -> dict[str, Any]:
    """The settings by name. Those that torch refuses to read, because the two interfaces differ,
    are left out."""
    found: dict[str, Any] = {}
    with suppress(RuntimeError):
        found[_PRECISION] = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        found[_ALLOWED] = torch.backends.cuda.matmul.allow_tf32
    with suppress(RuntimeError):
        found[_ALLOWED_IN_CUDNN] = torch.backends.cudnn.allow_tf32
    return found | {name: owner.fp32_precision for name, owner in _owners().items()}


def restore_float32_settings(before: Mapping[str, Any]) -> None:
    """Put back what `float32_settings` returned."""
    # A precision of `medium` and `allow_tf32` overwrite one another: the second is set only where
    # the first does not lead back.
    for allow_tf32 in (False, True):
        # The older interface first: it sets the newer one too.
        torch.set_float32_matmul_precision(before.get(_PRECISION, "highest"))
        if allow_tf32 and _ALLOWED in before:
            torch.backends.cuda.matmul.allow_tf32 = before[_ALLOWED]
        torch.backends.cudnn.allow_tf32 = before.get(_ALLOWED_IN_CUDNN, False)
        for name, owner in _owners().items():
            owner.fp32_precision = before[name]
        if float32_settings() == before:
            return


def _owners() -> dict[str, Any]:
    """What carries `fp32_precision` in the installed torch, by a name to show; the more general
    ones, which set the others, come first."""
    backends = torch.backends
    named = {
        "float32 precision": backends,
        "float32 precision of cuDNN": backends.cudnn,
        "float32 precision of oneDNN": getattr(backends, "mkldnn", None),
        "float32 precision of CUDA products": backends.cuda.matmul,
        "float32 precision of cuDNN convolutions": getattr(backends.cudnn, "conv", None),
        "float32 precision of cuDNN recurrences": getattr(backends.cudnn, "rnn", None),
        "float32 precision of oneDNN products": getattr(
            getattr(backends, "mkldnn", None), "matmul", None
        ),
        "float32 precision of oneDNN convolutions": getattr(
            getattr(backends, "mkldnn", None), "conv", None
        ),
        "float32 precision of oneDNN recurrences": getattr(
            getattr(backends, "mkldnn", None), "rnn", None
        ),
    }
    return {
        name: owner
        for name, owner in named.items()
        if owner is not None and hasattr(owner, "fp32_precision")
    }
