"""GPU: what holds on a CPU, on one CUDA device, for every attention implementation that is
installed.

Without a device each clause is *not-run*, which denies the certificate: nothing is skipped into a
pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from conformance.assertions import NotRun, require, within
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.oracle import Place
from conformance.parity.equality import relative_rms
from conformance.parity.gates import (
    MEMORY_RATIO,
    ROUNDING_RATIO,
    SEMANTICS,
    conditions,
    rounding_ratio,
)
from conformance.parity.library import attention_of, attentions_of, cast_parameters
from conformance.parity.probes import drawn_ids, held_bytes
from conformance.parity.reference import Reference
from conformance.parity.streaming import seeded_model
from conformance.subject.subject import Subject
from conformance.suite.models import configurable_class, logits_of, published_shapes, reference_of
from conformance.suite.rounding import modules_round_alike, rounding_batch, rounds_alike

_BATCH = 8
"""Rows of the batch that GPU-05 puts a row into: kernels choose other tiles for it."""
_MEMORY_LENGTH = 2048
"""Tokens of GPU-06's forward: enough that activations and logits show beside the weights."""

# cuBLAS reads it when it is first used; without it deterministic algorithms refuse to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@requirement("GPU-01", MUST, profile="gpu", needs=["HALF-01"], uses=["half_precision_dtype"])
def test_half_precision_holds_on_the_device(subject: Subject) -> None:
    """HALF-02 and HALF-07 on CUDA, for eager and sdpa (and flash-attn where installed)."""
    llm = _half_precision_on(subject, device())
    for attention in attentions_of(llm):
        with attention_of(llm, attention) as model:
            _holds_the_gates(model, reference_of(subject, model), subject.seed)


@requirement("GPU-02", MUST, profile="gpu", needs=["GPU-01"], uses=["half_precision_dtype"])
def test_half_precision_holds_at_the_published_size(subject: Subject) -> None:
    """The same at the published full size, whole model on the device or streamed."""
    on = device()
    llm, reference = _full_size(subject, on)
    for attention in attentions_of(llm):
        with attention_of(llm, attention) as model:
            _holds_the_gates(model, reference, subject.seed)


@requirement("GPU-03", MUST, profile="gpu", needs=["CON-06"], uses=["forward"])
def test_the_device_computes_what_the_cpu_does(subject: Subject) -> None:
    """CPU fp32 and CUDA fp32 (TF32 off) agree."""
    ids = rounding_batch(subject.float32.llm, len(subject.tokenizer), subject.seed)
    with torch.no_grad():
        on_cpu = subject.float32.forward(input_ids=ids).logits
    moved = subject.build_float32().to(device())
    with torch.no_grad(), without_tf32():
        on_device = moved.forward(input_ids=ids.to(device())).logits
    error = relative_rms(on_device.cpu(), on_cpu)
    within(
        "CPU and device",
        error,
        SEMANTICS,
        observed=f"the float32 logits on the device differ from the CPU's by a relative RMS of "
        f"{error:.2g}",
        expected=f"at most {SEMANTICS:g}, with TF32 off",
        mend="look for buffers made on the wrong device or in another dtype, and for kernels that "
        "round inputs",
        conditions=conditions(on_device.dtype, on_device.device),
    )


@requirement("GPU-04", MUST, profile="gpu", needs=["CON-06"], uses=["half_precision_dtype"])
def test_the_same_input_gives_the_same_bits(subject: Subject) -> None:
    """The same input twice on one device gives the same bits in the modes documented as
    deterministic."""
    llm = _half_precision_on(subject, device())
    ids = rounding_batch(llm, len(subject.tokenizer), subject.seed).to(device())
    for attention in attentions_of(llm):
        with attention_of(llm, attention) as model, deterministic(), torch.no_grad():
            first, second = (model(input_ids=ids).logits for _ in range(2))
        require(
            torch.equal(first, second),
            observed=f"with {attention} attention, {int((first != second).sum())} of "
            f"{first.numel()} logits differ in a second "
            "run of the same input",
            expected="the same bits, under `torch.use_deterministic_algorithms(True)`",
            mend="look for atomics, for state kept between calls, or for dropout left on",
        )


@requirement("GPU-05", SHOULD, profile="gpu", needs=["GPU-01"], uses=["half_precision_dtype"])
def test_the_size_of_the_batch_costs_no_precision(subject: Subject) -> None:
    """Batch-size invariance in bf16 within the calibrated gate."""
    llm = _half_precision_on(subject, device())
    reference = reference_of(subject, llm)
    rows = torch.cat(
        [rounding_batch(llm, reference.vocabulary, subject.seed + row) for row in range(_BATCH)]
    )
    rows = rows.to(device())
    decoder = reference.decoder()
    exact = decoder.logits(decoder.embed(rows[:1]), Place.of(torch.ones_like(rows[:1])))
    with torch.no_grad():
        alone, together = llm(input_ids=rows[:1]).logits, llm(input_ids=rows).logits[:1]
    ratio = rounding_ratio(together, exact, alone)
    within(
        "error in a batch over error alone",
        ratio,
        ROUNDING_RATIO,
        observed=f"in a batch of {_BATCH}, a row's logits are off by {ratio:.3g} times what they "
        f"are off by alone",
        expected=f"at most {ROUNDING_RATIO} times",
        mend="look for a kernel that accumulates in half precision for larger batches",
        conditions=conditions(together.dtype, together.device),
    )


@requirement("GPU-06", MUST, profile="gpu", needs=["GPU-02"], uses=["half_precision_dtype"])
def test_a_forward_takes_the_memory_it_must(subject: Subject) -> None:
    """Peak memory of a forward is within 5 % of the analytic figure (weights + activations +
    logits)."""
    on = device()
    before = torch.cuda.memory_allocated(on)
    llm, reference = _full_size(subject, on)
    length = min(_MEMORY_LENGTH, reference.architecture.positions)
    ids = drawn_ids(reference.vocabulary, length, subject.seed).to(on)
    torch.cuda.reset_peak_memory_stats(on)
    with torch.no_grad():
        logits = logits_of(llm(input_ids=ids, use_cache=False))
    measured = torch.cuda.max_memory_allocated(on) - before
    expected = analytic_bytes(llm, reference, length, logits.element_size())
    ratio = measured / expected
    within(
        "memory over the analytic figure",
        abs(ratio - 1) + 1,
        MEMORY_RATIO,
        observed=f"a forward over {length} tokens peaks at {measured / 1e9:.3f} GB",
        expected=f"{expected / 1e9:.3f} GB within 5 %: weights, the widest layer's activations, "
        f"logits",
        mend="look for a float32 copy of weights or logits, for a cache that is kept, or for "
        "attention scores that are stored",
    )


def device() -> torch.device:
    """The CUDA device to run on.

    Raises:
        NotRun: where there is none.
    """
    if not torch.cuda.is_available():
        raise NotRun(
            f"there is no CUDA device for profile gpu (torch {torch.__version__}): run it on a "
            f"machine that has one"
        )
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 matrix products with all their bits while the body runs."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def deterministic() -> Iterator[None]:
    """`torch.use_deterministic_algorithms` while the body runs."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def analytic_bytes(llm: Any, reference: Reference, length: int, logit_bytes: int) -> int:
    """Bytes that one forward over `length` tokens must hold at its peak: weights, buffers and
    logits, and the most activations that live at once, in the head or in one MLP."""
    architecture, parameter = reference.architecture, next(llm.parameters())
    held = held_bytes(llm)
    residual = length * architecture.hidden * parameter.element_size()
    names = architecture.names
    up = f"{names.layers}.0.{names.mlp}.{names.up}.weight"
    inner = length * int(reference.weights[up].shape[0]) * parameter.element_size()
    in_mlp = 2 * residual + (3 if names.gate else 2) * inner
    logits = length * reference.vocabulary
    # Releases that return float32 logits hold the model's own beside them for a moment.
    own = parameter.element_size() if logit_bytes != parameter.element_size() else 0
    in_head = residual + logits * (logit_bytes + own)
    return held + max(in_mlp, in_head)


def _holds_the_gates(llm: Any, reference: Reference, seed: int) -> None:
    dtype = next(llm.parameters()).dtype
    ids = rounding_batch(llm, reference.vocabulary, seed).to(device())
    with torch.no_grad(), without_tf32():
        modules_round_alike(llm, reference, ids)
        rounds_alike(reference, dtype, lambda: llm(input_ids=ids).logits, ids)


def _half_precision_on(subject: Subject, on: torch.device) -> Any:
    """A model whose parameters are half precision on the device, buffers as built."""
    backbone = subject.build()
    cast_parameters(backbone, backbone.half_precision_dtype)
    return backbone.to(on).eval().llm


def _full_size(subject: Subject, on: torch.device) -> tuple[Any, Reference]:
    """The model class at the published size with seeded weights, in half precision on the device,
    and its reference."""
    config, dtype = subject.recipe.config, subject.training.half_precision_dtype
    llm = seeded_model(
        configurable_class(subject), config, published_shapes(config), dtype, on, seed=subject.seed
    )
    return llm, reference_of(subject, llm, config)
