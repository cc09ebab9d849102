"""HALF: half precision."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st

from conformance.assertions import NotApplicable, require, tell, within
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.control import DEFAULTS, CallRefused, described, observe
from conformance.oracle import Place
from conformance.parity.equality import gradient_angles, gradients_of
from conformance.parity.gates import GRADIENT_COSINE, conditions, rounding_ratio
from conformance.parity.kernels import precision_beside
from conformance.parity.library import cast_parameters
from conformance.parity.modules import error_growth
from conformance.subject.subject import Subject
from conformance.suite.models import IGNORED_LABEL, is_routed, loaded_in, probe_ids, reference_of
from conformance.suite.product import compared
from conformance.suite.properties import for_all
from conformance.suite.rounding import (
    far_batch,
    far_sighted,
    modules_round_alike,
    rounding_batch,
    rounds_alike,
    within_rounding,
)
from conformance.suite.strategies import sequences

_SIZES_APART = 1.25
"""How much larger or smaller all gradients together may be in half precision. Rounding moves them
by a few per cent; a mistake in scaling is as large as a number of labels, rows or steps."""
_ACTIVATION_SCALES = (1, 2**8, 2**17)
"""Trained models have residuals of 1e3 to 1e5; the last is beyond float16's largest number, 65,504.
"""


@requirement("HALF-01", MUST, needs=["CON-01"], uses=["half_precision_dtype"])
def test_half_precision_is_the_training_dtype(subject: Subject) -> None:
    """`half_precision_dtype` is a 16-bit floating dtype and the declared *training* dtype of the
    family (Llama-2's hub files say float16, but it was trained in bfloat16)."""
    dtype = subject.training.half_precision_dtype
    expected = getattr(torch, subject.declared.training_dtype)
    sixteen_bit = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize == 2
    require(
        sixteen_bit and dtype == expected,
        observed=f"half_precision_dtype is {dtype}",
        expected=f"{expected}, which the family was trained in",
        mend="return the training dtype; the dtype of the hub files says how they were stored, "
        "not how the model was trained",
    )


def _padded_and_scaled(subject: Subject) -> list[dict[str, Any]]:
    """Edges: padding on either side, beside activations of every size."""
    first, second = probe_ids(subject).tolist()
    return [
        {"batch": [first, second[:3]], "left": left, "scale": scale}
        for scale, left in itertools.product(_ACTIVATION_SCALES, (True, False))
    ]


@requirement(
    "HALF-03",
    MUST,
    needs=["HALF-01", "PAD-05"],
    uses=["half_precision_dtype", "forward", "embed_input_ids"],
)
@for_all(
    examples=12,
    edges=_padded_and_scaled,
    batch=sequences,
    left=lambda _: st.booleans(),
    scale=lambda _: st.sampled_from(_ACTIVATION_SCALES),
)
def test_half_precision_is_finite(
    subject: Subject, batch: list[list[int]], left: bool, scale: int
) -> None:
    """Half-precision logits and loss are finite, also left-padded, also for large activations."""
    backbone, pad = subject.half_precision, subject.tokenizer.pad_token_id or 0
    width = max(map(len, batch)) + 2

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        fills = [[filler] * (width - len(row)) for row in rows]
        return torch.tensor(
            [fill + row if left else row + fill for row, fill in zip(rows, fills, strict=True)]
        )

    ids, mask = padded(batch, pad), padded([[1] * len(row) for row in batch], 0)
    with torch.no_grad():
        embedded = backbone.embed_input_ids(ids)
        # Activations that a family trained in float16 cannot have had prove nothing.
        largest = torch.finfo(getattr(torch, subject.declared.training_dtype)).max / 4
        scale = max(1, min(scale, int(largest / float(embedded.abs().max()))))
        embedded = embedded * scale
        labels = ids.masked_fill(mask == 0, IGNORED_LABEL)
        out = backbone.forward(inputs_embeds=embedded, attention_mask=mask, labels=labels)
    # A backbone may mask the logits of rows that no token has away.
    real = out.logits[mask.bool()][:, : len(subject.tokenizer)]
    finite = bool(torch.isfinite(real).all()) and bool(torch.isfinite(out.loss))
    require(
        finite,
        observed=f"in {backbone.half_precision_dtype}, {'left' if left else 'right'}-padded, with "
        f"embeddings times {scale}, "
        f"{int((~torch.isfinite(real)).sum())} logits are not finite and the loss is "
        f"{float(out.loss):g}",
        expected="finite logits and loss",
        mend="use bfloat16, whose range is float32's: float16 ends at 65,504; and mask with the "
        "dtype's own minimum",
    )


@requirement("HALF-03", MUST, needs=["HALF-01", "PAD-05"], uses=["forward"])
def test_padded_batches_are_finite_in_either_format(subject: Subject) -> None:
    """Padded batches are finite in bfloat16 and in float16, wherever the library's own model is,
    and the batch without padding: hosts cast to what their devices compute in."""
    together, judged = compared(subject), 0
    backbone, control = together.backbone("training"), together.control("training")
    for dtype, attention, mask in itertools.product(
        (torch.bfloat16, torch.float16), ("as built", "eager"), ("ragged left", "right")
    ):
        row = {"precision": "half", "attention": attention, "mask": mask, "batch": 3}
        try:
            expected, whole, observed = (
                observe(one, asked, together.inputs, dtype)["logits"]
                for one, asked in (
                    (control, row), (backbone, {**row, "mask": "ones"}), (backbone, row)
                )
            )  # fmt: skip
        except CallRefused:  # in the declared dtype that is FWD-14's
            continue
        if not all(bool(torch.isfinite(logits).all()) for logits in (expected, whole)):
            continue
        judged += 1
        require(
            bool(torch.isfinite(observed).all()),
            observed=f"in {dtype}, {described({**DEFAULTS, **row})}, "
            f"{int((~torch.isfinite(observed)).sum())} of {observed.numel()} logits are not finite",
            expected="finite logits, as the library's own model has them",
            mend="mask with `torch.finfo(dtype).min` of the dtype that scores are computed in: "
            "float16 ends at 65,504, and a row of -inf alone becomes NaN",
        )
    if not judged:
        raise NotApplicable("in neither format are both models finite without padding")


def seeds(_: Subject) -> st.SearchStrategy[int]:
    """Seeds for batches of `drawn_ids`: drawn tokens would shrink to sequences too short to
    judge."""
    return st.integers(0, 2**32 - 1)


@requirement(
    "HALF-07",
    MUST,
    profile="numerics",
    needs=["HALF-01", "EMB-07", "FWD-01"],
    uses=["half_precision_dtype"],
)
@for_all(examples=2, seed=seeds)
def test_each_module_rounds_like_the_reference(subject: Subject, seed: int) -> None:
    """Module gate, teacher-forced (docs/numerics.md gate 3)."""
    backbone = subject.half_precision_parameters
    reference = reference_of(subject, backbone.llm)
    ids = rounding_batch(backbone.llm, reference.vocabulary, seed)
    modules_round_alike(backbone.llm, reference, ids)


@requirement(
    "HALF-02", MUST, profile="numerics", needs=["HALF-07"], uses=["half_precision_dtype", "forward"]
)
@for_all(examples=2, seed=seeds)
def test_half_precision_rounds_like_the_reference(subject: Subject, seed: int) -> None:
    """bf16 forward parity, rounding gate (docs/numerics.md gate 2)."""
    backbone = subject.half_precision_parameters
    reference = reference_of(subject, backbone.llm)
    ids = rounding_batch(backbone.llm, reference.vocabulary, seed)
    dtype = backbone.half_precision_dtype

    def run() -> torch.Tensor:
        return backbone.forward(input_ids=ids).logits

    growth = error_growth(
        backbone.llm,
        reference,
        run,
        reference.decoder().embed(ids),
        Place.of(torch.ones_like(ids)),
        precision_beside(run, dtype),
    )
    tell("error growth", growth)
    rounds_alike(reference, dtype, run, ids)


@requirement(
    "HALF-04",
    SHOULD,
    profile="numerics",
    needs=["HALF-02"],
    uses=["half_precision_dtype", "forward"],
)
@for_all(examples=1, seed=seeds)
def test_far_positions_survive_the_cast(subject: Subject, seed: int) -> None:
    """After `.to(half_precision_dtype)` far-position logits stay inside the rounding gate
    (unmodified HF models fail this on 5.x: ratio 1.40 at 512 positions, 2.2 at 1,024; the
    references keep their rotary buffers in float32 and pass)."""
    with far_sighted(subject) as config:
        fresh = subject.build(), subject.build()
        backbone, other = (one.to(one.half_precision_dtype).eval() for one in fresh)
        reference = reference_of(subject, backbone.llm, config)
        ids, far = far_batch(reference, seed)
        # Generation goes by `llm` alone, and may come first.
        for forward in (other.llm, backbone.forward):
            rounds_alike(
                reference,
                backbone.half_precision_dtype,
                functools.partial(_logits_by, forward, ids),
                ids,
                far,
                mend="keep `inv_freq` in float32 through `.to(dtype)`: a rounded frequency is off "
                "in proportion to the position",
            )


def _logits_by(forward: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = forward(input_ids=ids).logits
    return logits


@requirement("HALF-08", MUST, profile="numerics", needs=["HALF-07"], uses=["half_precision_dtype"])
@for_all(examples=1, seed=seeds)
def test_far_positions_survive_loading_in_half_precision(subject: Subject, seed: int) -> None:
    """Loaded in `half_precision_dtype` by the documented path, far-position logits stay inside the
    rounding gate."""
    dtype = subject.training.half_precision_dtype
    reference_of(
        subject, subject.training.llm
    )  # not applicable without a reference, whatever loads
    with far_sighted(subject) as config:
        llm = loaded_in(subject, dtype)
    reference = reference_of(subject, llm, config)
    ids, far = far_batch(reference, seed)
    rounds_alike(
        reference,
        dtype,
        lambda: llm(input_ids=ids).logits,
        ids,
        far,
        mend="leave the rotary buffers float32 in `from_pretrained`, whatever dtype the weights "
        "are asked for in",
    )


@requirement(
    "HALF-05", MUST, profile="numerics", needs=["HALF-02"], uses=["half_precision_dtype", "forward"]
)
@for_all(examples=2, seed=seeds)
def test_autocast_rounds_no_worse(subject: Subject, seed: int) -> None:
    """Autocast forward parity."""
    backbone, dtype = subject.float32, subject.training.half_precision_dtype
    ids = rounding_batch(backbone.llm, len(subject.tokenizer), seed)

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return backbone.forward(input_ids=ids).logits

    mend = (
        "keep float32 islands (norms, softmax, angles) out of autocast, and cast nothing below "
        "the declared dtype"
    )
    try:
        reference = reference_of(subject, backbone.llm)
    except NotApplicable:
        _not_routed(subject)
        # Without a reference, the subject's own cast is the measure: autocast keeps more in
        # float32.
        with torch.no_grad():
            exact = backbone.forward(input_ids=ids).logits
            cast = subject.half_precision_parameters.forward(input_ids=ids).logits
            observed = autocast()
        ratio = rounding_ratio(observed, exact, cast)
        within_rounding(ratio, f"under autocast to {dtype}", mend, observed)
        return
    rounds_alike(reference, dtype, autocast, ids, mend=mend)


@requirement(
    "HALF-06", MUST, profile="numerics", needs=["HALF-02"], uses=["half_precision_dtype", "forward"]
)
def test_half_precision_gradients_point_the_same_way(subject: Subject) -> None:
    """bf16 gradients agree in direction with fp32 gradients (per parameter, calibrated), and in
    size."""
    _not_routed(subject)
    ids = probe_ids(subject, batch=2, length=64)
    # One instance, before and after: two builds may differ in what they draw, which CON-10 judges.
    backbone, dtype = subject.build().eval(), subject.training.half_precision_dtype
    exact = _gradients(backbone, torch.float32, ids)
    rounded = _gradients(backbone, dtype, ids)
    for name, angle in gradient_angles(rounded, exact).items():
        within(
            "one minus cosine of gradients",
            angle,
            1 - GRADIENT_COSINE,
            observed=f"the gradient of `{name}` in {dtype} has a cosine of {1 - angle:.4f} with "
            f"that in float32"
            if name in rounded
            else f"`{name}` has no gradient in {dtype}, and one in float32",
            expected=f"at least {GRADIENT_COSINE}",
            mend="look for a backward pass that rounds, clips or drops gradients in half precision",
            conditions=conditions(dtype, "cpu"),
            module=name,
        )
    size = _norm(rounded) / _norm(exact)
    require(
        1 / _SIZES_APART < size < _SIZES_APART,
        observed=f"the gradients in {dtype} are together {size:.3g} times those in float32",
        expected="gradients as large: an optimizer's step, and clipping, go by their size",
        mend="scale the loss in no precision; average over labels once",
    )


def _norm(gradients: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(one.pow(2).sum()) for one in gradients.values()))


def _not_routed(subject: Subject) -> None:
    if is_routed(subject.training.llm):
        raise NotApplicable("tokens are routed to experts, and rounding may send one elsewhere")


def _gradients(backbone: Any, dtype: torch.dtype, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    backbone.zero_grad(set_to_none=True)
    cast_parameters(backbone.llm, dtype)
    backbone.llm.requires_grad_(True)
    backbone.forward(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    return gradients_of(backbone.llm)
