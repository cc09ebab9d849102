"""What clauses about a CUDA device are written with: the device, its modes, and a backbone of the
published size on it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from conformance.assertions import NotRun
from conformance.hub.language_model import decoder_config
from conformance.parity.device_memory import free_bytes
from conformance.parity.kernels import SDPA_KERNELS, only_kernel
from conformance.parity.library import cast_parameters
from conformance.parity.reference import Reference
from conformance.parity.streaming import seeded_model, write_seeded
from conformance.subject.subject import Subject
from conformance.suite.models import configurable_class, published_shapes, reference_of

# cuBLAS reads it when it is first used; without it deterministic algorithms refuse to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_ROOM = 1.1
"""Memory to have free over what the weights take: a layer's activations, and what cuBLAS keeps."""


def device() -> torch.device:
    """The CUDA device to run on.

    Raises:
        NotRun: if there is none.
    """
    if not torch.cuda.is_available():
        raise NotRun(
            f"there is no CUDA device for profile gpu (torch {torch.__version__}): run it on a "
            f"machine that has one"
        )
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def deterministic() -> Iterator[None]:
    """`torch.use_deterministic_algorithms` while the body runs."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def kernels_for(attention: str) -> Iterator[str | None]:
    """The kernels to run an attention implementation with, one after the other, each in force while
    the caller's loop body runs: torch's own choice first (None), then each that it can be held to.
    """
    yield None
    for kernel in SDPA_KERNELS if attention == "sdpa" else ():
        with only_kernel(kernel):
            yield kernel


@dataclass(frozen=True)
class Published:
    """A backbone of the published size on a device, its weights seeded in half precision.

    `forward` is the subject's own if its constructor could build that size; `built` says so, or
    why not.
    """

    forward: Any
    llm: Any
    reference: Reference
    built: str
    before: int
    """Bytes that were held on the device before it was built."""


_PUBLISHED: WeakKeyDictionary[Subject, Published] = WeakKeyDictionary()


def published(subject: Subject, on: torch.device, held: int) -> Published:
    """The subject at its published size, built once; `held` are the bytes on the device now.

    Raises:
        NotRun: if the device has too little memory, with the numbers.
        NotApplicable: for a family without a reference.
    """
    if subject not in _PUBLISHED:
        _PUBLISHED[subject] = _built(subject, on, held)
    return _PUBLISHED[subject]


def _built(subject: Subject, on: torch.device, held: int) -> Published:
    config = decoder_config(subject.recipe.config)
    dtype = subject.training.half_precision_dtype
    parameters = sum(math.prod(shape) for shape in published_shapes(config).values())
    free = free_bytes(on)
    least = int(parameters * dtype.itemsize * _ROOM)
    if free < least:
        raise NotRun(
            f"the published size takes {least / 1e9:.1f} GB on the device, and "
            f"{free / 1e9:.1f} GB are free: take a larger device, or judge it streamed "
            "(profile scale)"
        )
    why = "the device has no room for it in float32, as constructors build it"
    if free >= int(parameters * 4 * _ROOM):
        try:
            return _by_constructor(subject, on, config, held)
        except Exception as error:
            why = f"its constructor raised {type(error).__name__}: {str(error)[:200]}"
    llm = seeded_model(
        configurable_class(subject), config, published_shapes(config), dtype, on, seed=subject.seed
    )
    reference = reference_of(subject, llm, config)
    return Published(llm, llm, reference, f"from the class of `llm` alone: {why}", held)


def _by_constructor(
    subject: Subject, on: torch.device, config: Mapping[str, Any], held: int
) -> Published:
    """Build the subject itself from a snapshot with the published config, without weights."""

    def publish(snapshot: Path) -> None:
        (snapshot / "config.json").write_text(json.dumps(config), encoding="utf-8")

    with subject.hub_variant(publish), torch.device(on):
        backbone = subject.build(inference_mode=True)
    backbone.requires_grad_(False)
    cast_parameters(backbone, subject.training.half_precision_dtype)
    backbone = backbone.to(on).eval()
    reference = reference_of(subject, backbone.llm, config)
    write_seeded(backbone.llm, reference.prefix, config, seed=subject.seed)
    return Published(
        backbone.forward, backbone.llm, reference, "by the subject's constructor", held
    )
