"""GPU: what holds on a CPU, on one CUDA device, for every attention implementation that is
installed.

Without a device each clause is *not-run*, which denies the certificate: nothing is skipped into a
pass. Memory that does not suffice is *not-run* too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from conformance.assertions import require, tell, within
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.oracle import Place
from conformance.parity import device_memory
from conformance.parity.equality import GRADIENT_RELATIVE_RMS, gradients_of, relative_rms
from conformance.parity.gates import MEMORY_RATIO, calibration_for, conditions, rounding_ratio
from conformance.parity.kernels import attention_kernels, is_refusal
from conformance.parity.library import attention_of, attentions_of, cast_parameters
from conformance.parity.precision import full_float32
from conformance.parity.probes import drawn_ids, held_bytes
from conformance.parity.reference import Reference
from conformance.subject.subject import Subject
from conformance.suite import on_device
from conformance.suite.models import IGNORED_LABEL, logits_of, probe_ids, reference_of
from conformance.suite.rounding import modules_round_alike, rounding_batch, rounds_alike

_BATCH = 8
"""Rows of the batch that GPU-05 puts a row into: kernels choose other tiles for it."""
_MEMORY_LENGTH = 2048
"""Tokens of GPU-06's forward: enough that activations and logits show."""
_CHUNKS = (7, 1, 1, 16, 3)
"""Tokens of each call of GPU-08: a prompt, single tokens, and chunks."""
_NEW_TOKENS = 8
_PADDING = 5
_MOVE = (
    "register constants as buffers, so that `.to(device)` moves them, and make new tensors on the "
    "device of the inputs"
)


@requirement("GPU-01", MUST, profile="gpu", needs=["HALF-01"], uses=["half_precision_dtype"])
def test_half_precision_holds_on_the_device(subject: Subject) -> None:
    """HALF-02 and HALF-07 on CUDA, for eager and sdpa (and flash-attn where installed)."""
    llm = _half_precision_on(subject, on_device.device())
    _for_each_kernel(
        llm, lambda model: _holds_the_gates(model, reference_of(subject, model), subject.seed)
    )


@requirement("GPU-02", MUST, profile="gpu", needs=["GPU-01"], uses=["half_precision_dtype"])
def test_half_precision_holds_at_the_published_size(subject: Subject) -> None:
    """The same at the published full size, whole model on the device or streamed."""
    on = on_device.device()
    found = on_device.published(subject, on, device_memory.held_bytes(on))
    tell("built", found.built)
    _for_each_kernel(
        found.llm, lambda model: _holds_the_gates(model, found.reference, subject.seed)
    )


@requirement("GPU-03", MUST, profile="gpu", needs=["CON-06"], uses=["forward"])
def test_the_device_computes_what_the_cpu_does(subject: Subject) -> None:
    """CPU fp32 and CUDA fp32 (TF32 off) agree."""
    ids = rounding_batch(subject.float32.llm, len(subject.tokenizer), subject.seed)
    _agree(subject, {"a long sequence": {"input_ids": ids}})


@requirement("GPU-04", MUST, profile="gpu", needs=["CON-06"], uses=["half_precision_dtype"])
def test_the_same_input_gives_the_same_bits(subject: Subject) -> None:
    """The same input twice on one device gives the same bits in the modes documented as
    deterministic."""
    llm = _half_precision_on(subject, on_device.device())
    ids = rounding_batch(llm, len(subject.tokenizer), subject.seed).to(on_device.device())

    def twice(model: Any) -> None:
        with on_device.deterministic(), torch.no_grad():
            first, second = (model(input_ids=ids).logits for _ in range(2))
        require(
            torch.equal(first, second),
            observed=f"{int((first != second).sum())} of {first.numel()} logits differ in a "
            "second run of the same input",
            expected="the same bits, under `torch.use_deterministic_algorithms(True)`",
            mend="look for atomics, for state kept between calls, or for dropout left on",
            attention=model.config._attn_implementation,
            kernels=list(attention_kernels(lambda: model(input_ids=ids))),
        )

    _for_each_kernel(llm, twice)


@requirement("GPU-05", SHOULD, profile="gpu", needs=["GPU-01"], uses=["half_precision_dtype"])
def test_the_size_of_the_batch_costs_no_precision(subject: Subject) -> None:
    """Batch-size invariance in bf16 within the calibrated gate."""
    on = on_device.device()
    llm = _half_precision_on(subject, on)
    reference = reference_of(subject, llm)
    rows = torch.cat(
        [rounding_batch(llm, reference.vocabulary, subject.seed + row) for row in range(_BATCH)]
    ).to(on)
    decoder = reference.decoder()
    exact = decoder.logits(decoder.embed(rows[:1]), Place.of(torch.ones_like(rows[:1])))
    with torch.no_grad():
        alone, together = llm(input_ids=rows[:1]).logits, llm(input_ids=rows).logits[:1]
    ratio = rounding_ratio(together, exact, alone)
    bound = calibration_for(on).bounds["rounding ratio"]
    within(
        "error in a batch over error alone",
        ratio,
        bound,
        observed=f"in a batch of {_BATCH}, a row's logits are off by {ratio:.3g} times what they "
        f"are off by alone",
        expected=f"at most {bound} times",
        mend="look for a kernel that accumulates in half precision for larger batches",
        conditions=conditions(together.dtype, together.device),
    )


@requirement("GPU-06", MUST, profile="gpu", needs=["GPU-02"], uses=["half_precision_dtype"])
def test_a_forward_takes_the_memory_it_must(subject: Subject) -> None:
    """At the published size a forward takes, beside the weights, at most 1.5 times what its widest
    moment must hold: four residuals and one MLP's inner activations, or a residual and the
    logits."""
    on = on_device.device()
    found = on_device.published(subject, on, device_memory.held_bytes(on))
    length = min(_MEMORY_LENGTH, found.reference.architecture.positions)
    ids = drawn_ids(found.reference.vocabulary, length, subject.seed).to(on)
    device_memory.reset_peak(on)
    with torch.no_grad():
        logits = found.forward(input_ids=ids, use_cache=False)
    del logits
    above = device_memory.peak_bytes(on) - found.before - held_bytes(found.llm)
    with torch.no_grad():
        # In the dtype that the library's class returns, whatever the subject makes of it.
        own = logits_of(found.llm(input_ids=ids[:, :1], use_cache=False))
    parameter = next(found.llm.parameters())
    must = activation_bytes(found.reference, length, parameter.element_size(), own.element_size())
    tell("built", found.built)
    within(
        "memory above the weights over what must be held",
        above / must,
        MEMORY_RATIO,
        observed=f"a forward over {length} tokens takes {above / 1e6:.0f} MB above the weights",
        expected=f"at most {MEMORY_RATIO} times {must / 1e6:.0f} MB: the widest layer's "
        "activations, or the logits",
        mend="look for a float32 copy of weights or logits, for a cache that is kept, or for "
        "attention scores that are stored",
    )


@requirement("GPU-07", MUST, profile="gpu", needs=["GPU-03"], uses=["forward", "embed_input_ids"])
def test_every_call_agrees_with_the_cpu(subject: Subject) -> None:
    """On the device the backbone computes what it computes on the CPU (float32, TF32 off), however
    it is called: padded on either side, with explicit positions, by embeddings, with labels, with
    all hidden states."""
    ids = probe_ids(subject, batch=2, length=24)
    right = torch.ones_like(ids)
    right[0, -_PADDING:] = 0
    left = right.flip(1)
    labels = ids.masked_fill(left == 0, IGNORED_LABEL)
    positions = (left.cumsum(1) - 1).clamp(min=0)
    padded = {"input_ids": ids, "attention_mask": left}
    embedded = subject.float32.embed_input_ids(ids).detach()
    _agree(
        subject,
        {
            "padded on the right": {"input_ids": ids, "attention_mask": right},
            "padded on the left, with positions": {**padded, "position_ids": positions},
            "with labels": {**padded, "position_ids": positions, "labels": labels},
            "by embeddings": {"inputs_embeds": embedded},
            "with all hidden states": {"input_ids": ids, "output_hidden_states": True},
        },
    )
    on_cpu = subject.float32.embed_input_ids(ids)
    moved = _float32_on(subject).embed_input_ids(ids.to(on_device.device()))
    _near("`embed_input_ids`", moved, on_cpu)


@requirement("GPU-08", MUST, profile="gpu", needs=["GPU-03"], uses=["forward"])
def test_decoding_on_the_device_agrees_with_the_cpu(subject: Subject) -> None:
    """On the device, decoding with a cache, in chunks and one token at a time, gives the logits
    that the same calls give on the CPU (float32, TF32 off)."""
    ids = probe_ids(subject, batch=2, length=sum(_CHUNKS))
    moved = _float32_on(subject)
    with torch.no_grad(), full_float32():
        expected = _decoded(subject.float32, ids)
        observed = _decoded(moved, ids.to(on_device.device()))
    _near("decoding with a cache", observed, expected)


@requirement(
    "GPU-09", MUST, profile="gpu", needs=["GPU-03"], uses=["forward", "half_precision_dtype"]
)
def test_training_on_the_device_agrees_with_the_cpu(subject: Subject) -> None:
    """On the device, autocast stays inside the rounding gate, and a backward pass gives every
    parameter the CPU's gradient (float32, TF32 off)."""
    on, dtype = on_device.device(), subject.training.half_precision_dtype
    backbone = _float32_on(subject)
    reference = reference_of(subject, backbone.llm)
    long = rounding_batch(backbone.llm, reference.vocabulary, subject.seed).to(on)

    def autocast() -> torch.Tensor:
        with torch.autocast(on.type, dtype=dtype):
            return logits_of(backbone.forward(input_ids=long))

    with full_float32():
        rounds_alike(
            reference,
            dtype,
            autocast,
            long,
            mend="keep float32 islands (norms, softmax, angles) out of autocast",
        )
    ids = probe_ids(subject, batch=2, length=32)
    on_cpu = _gradients(subject.build_float32(), ids)
    with full_float32():
        found = _gradients(subject.build_float32().to(on), ids.to(on))
    for name, expected in on_cpu.items():
        observed = found.get(name)
        error = float("inf") if observed is None else relative_rms(observed.cpu(), expected)
        within(
            "gradient on the device",
            error,
            GRADIENT_RELATIVE_RMS,
            observed=f"the gradient of `{name}` differs from the CPU's by a relative RMS of "
            f"{error:.2g}",
            expected=f"at most {GRADIENT_RELATIVE_RMS:g}",
            mend="look for a part of the backward pass that is detached, cast or left on the CPU",
            conditions=conditions(torch.float32, on),
        )


@requirement("GPU-10", MUST, profile="gpu", needs=["GPU-08", "GEN-04"], uses=["forward"])
def test_greedy_generation_on_the_device_is_the_cpus(subject: Subject) -> None:
    """Greedy generation on the device, from a left-padded batch, takes at each step an id whose
    logit on the CPU is the largest, up to what summation does (float32, TF32 off)."""
    ids = probe_ids(subject, batch=2, length=12)
    mask = torch.ones_like(ids)
    mask[0, :_PADDING] = 0
    pad = subject.tokenizer.pad_token_id or 0
    ids = ids.masked_fill(mask == 0, pad)
    on, llm = on_device.device(), _float32_on(subject).llm
    with torch.no_grad(), full_float32():
        made = llm.generate(
            input_ids=ids.to(on),
            attention_mask=mask.to(on),
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=pad,
        ).cpu()
    generated = made[:, ids.shape[1] :]
    whole = torch.cat([mask, torch.ones_like(generated)], dim=1)
    positions = (whole.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = subject.float32.llm(
            input_ids=made, attention_mask=whole, position_ids=positions
        ).logits[:, ids.shape[1] - 1 : -1]
    stops = torch.tensor(subject.generation_eos_ids, dtype=torch.long)
    # What `min_new_tokens` forbids is not among what greedy decoding chooses from.
    allowed = logits.double().index_fill(2, stops, float("-inf"))
    short = allowed.amax(2) - allowed.gather(2, generated[..., None])[..., 0]
    worst = float(short.max() / logits.double().std())
    bound = 10 * calibration_for(on).bounds["semantics"]
    within(
        "logit of a generated id below the largest",
        worst,
        bound,
        observed=f"a generated id's logit on the CPU is {worst:.2g} standard deviations below the "
        "largest",
        expected=f"at most {bound:g}",
        mend="look for masks, positions or caches that differ on the device",
        conditions=conditions(logits.dtype, on),
        generated=generated.tolist(),
    )


def activation_bytes(
    reference: Reference, length: int, element_bytes: int, logit_bytes: int
) -> int:
    """Bytes that a forward over `length` tokens must hold beside the weights at its widest moment:
    in an MLP, or in the head."""
    architecture, names = reference.architecture, reference.architecture.names
    residual = length * architecture.hidden * element_bytes
    down = f"{names.layers}.0.{names.mlp}.{names.down}.weight"
    inner = length * int(reference.weights[down].shape[1]) * element_bytes
    # The layer's input, the residual, its norm, and what the caller still holds.
    in_mlp = 4 * residual + (3 if names.gate else 2) * inner
    logits = length * reference.vocabulary
    # Releases that return float32 logits hold the model's own beside them for a moment.
    own = element_bytes if logit_bytes != element_bytes else 0
    in_head = residual + logits * (logit_bytes + own)
    return max(in_mlp, in_head)


def _for_each_kernel(llm: Any, judge: Callable[[Any], None]) -> None:
    """Judge `llm` with each attention implementation and, for sdpa, with each kernel that takes its
    inputs; the evidence says which ran."""
    ran: dict[str, list[str]] = {}
    for attention in attentions_of(llm):
        with attention_of(llm, attention) as model:
            for kernel in on_device.kernels_for(attention):
                try:
                    judge(model)
                except RuntimeError as error:
                    if kernel is None or not is_refusal(error):
                        raise
                else:
                    ran.setdefault(attention, []).append(kernel or "chosen by torch")
    tell("kernels", ran)


def _holds_the_gates(llm: Any, reference: Reference, seed: int) -> None:
    dtype = next(llm.parameters()).dtype
    ids = rounding_batch(llm, reference.vocabulary, seed).to(on_device.device())
    with torch.no_grad(), full_float32():
        modules_round_alike(llm, reference, ids)
        rounds_alike(reference, dtype, lambda: llm(input_ids=ids).logits, ids)


def _half_precision_on(subject: Subject, on: torch.device) -> Any:
    """A model whose parameters are half precision on the device, buffers as built."""
    backbone = subject.build()
    cast_parameters(backbone, backbone.half_precision_dtype)
    return backbone.to(on).eval().llm


def _float32_on(subject: Subject) -> Any:
    return subject.build_float32().to(on_device.device())


def _gradients(backbone: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    backbone.forward(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    found = gradients_of(backbone.llm)
    require(
        bool(found),
        observed="after a backward pass no parameter of `llm` has a gradient",
        expected="gradients to compare with",
        mend="leave parameters trainable in training mode, and return the loss undetached",
    )
    return found


def _decoded(backbone: Any, ids: torch.Tensor) -> torch.Tensor:
    past, parts, seen = None, [], 0
    for count in _CHUNKS:
        chunk = ids[:, seen : seen + count]
        seen += count
        out = backbone.forward(
            input_ids=chunk,
            attention_mask=torch.ones_like(ids[:, :seen]),
            past_key_values=past,
            use_cache=True,
        )
        past = out.past_key_values
        parts.append(logits_of(out))
    return torch.cat(parts, dim=1)


def _agree(subject: Subject, calls: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold what `forward` returns on the device, for each call, to what it returns on the CPU."""
    on = on_device.device()
    moved = _float32_on(subject)
    for how, call in calls.items():
        there = {
            name: value.to(on) if isinstance(value, torch.Tensor) else value
            for name, value in call.items()
        }
        with torch.no_grad(), full_float32():
            expected = subject.float32.forward(**call)
            observed = moved.forward(**there)
        logits, wanted, mask = logits_of(observed), logits_of(expected), call.get("attention_mask")
        if mask is not None:
            logits, wanted = logits[mask.bool().to(logits.device)], wanted[mask.bool()]
        _near(f"logits, {how}", logits, wanted)
        if "labels" in call:
            _near(f"loss, {how}", observed.loss[None], expected.loss[None])
        states = zip(
            observed.hidden_states or () if "output_hidden_states" in call else (),
            expected.hidden_states or () if "output_hidden_states" in call else (),
            strict=True,
        )
        for layer, (one, other) in enumerate(states):
            _near(f"hidden state {layer}, {how}", one, other)


def _near(what: str, observed: torch.Tensor, expected: torch.Tensor) -> None:
    """Hold what the device returned to what the CPU did, and to where it lies."""
    on = on_device.device()
    require(
        observed.device.type == on.type,
        observed=f"{what}: the result lies on {observed.device}",
        expected=f"a result on {on}, where the inputs are",
        mend=_MOVE,
    )
    error = relative_rms(observed.detach().cpu(), expected.detach())
    bound = calibration_for(observed.device).bounds["semantics"]
    within(
        "CPU and device",
        error,
        bound,
        observed=f"{what}: the device's float32 values differ from the CPU's by a relative RMS of "
        f"{error:.2g}",
        expected=f"at most {bound:g}, with TF32 off",
        mend=f"{_MOVE}; and look for kernels that round inputs",
        conditions=conditions(observed.dtype, observed.device),
    )
