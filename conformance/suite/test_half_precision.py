"""HALF: half precision."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from conformance.assertions import require
from conformance.catalogue import MUST, requirement
from conformance.properties import for_all
from conformance.strategies import sequences
from conformance.subject import Subject
from conformance.suite.models import IGNORED_LABEL

#: Trained models have residuals of 1e3 to 1e5; the last is beyond float16's largest number, 65,504.
_ACTIVATION_SCALES = (1, 2**8, 2**17)


@requirement("HALF-01", MUST, needs=["CON-01"], uses=["half_precision_dtype"])
def test_half_precision_is_the_training_dtype(subject: Subject) -> None:
    """`half_precision_dtype` is a 16-bit floating dtype and the declared *training* dtype of the family (Llama-2's hub files
    say float16, but it was trained in bfloat16)."""
    dtype = subject.training.half_precision_dtype
    expected = getattr(torch, subject.declared.training_dtype)
    sixteen_bit = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize == 2
    require(
        sixteen_bit and dtype == expected,
        observed=f"half_precision_dtype is {dtype}",
        expected=f"{expected}, which the family was trained in",
        mend="return the training dtype; the dtype of the hub files says how they were stored, not how the model was trained",
    )


@requirement(
    "HALF-03", MUST, needs=["HALF-01", "EMB-02"], uses=["half_precision_dtype", "forward", "embed_input_ids"]
)
@for_all(
    examples=12,
    batch=sequences,
    left=lambda _: st.booleans(),
    scale=lambda _: st.sampled_from(_ACTIVATION_SCALES),
)
def test_half_precision_is_finite(subject: Subject, batch: list[list[int]], left: bool, scale: int) -> None:
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
        # Activations that a family trained in float16 cannot have had prove nothing about it.
        within = torch.finfo(getattr(torch, subject.declared.training_dtype)).max / 4
        scale = max(1, min(scale, int(within / float(embedded.abs().max()))))
        embedded = embedded * scale
        labels = ids.masked_fill(mask == 0, IGNORED_LABEL)
        out = backbone.forward(inputs_embeds=embedded, attention_mask=mask, labels=labels)
    real = out.logits[mask.bool()]
    finite = bool(torch.isfinite(real).all()) and bool(torch.isfinite(out.loss))
    require(
        finite,
        observed=f"in {backbone.half_precision_dtype}, {'left' if left else 'right'}-padded, with embeddings times {scale}, "
        f"{int((~torch.isfinite(real)).sum())} logits are not finite and the loss is {float(out.loss):g}",
        expected="finite logits and loss",
        mend="use bfloat16, whose range is float32's: float16 ends at 65,504; and mask with the dtype's own minimum",
    )
