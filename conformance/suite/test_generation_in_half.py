"""GEN: generation in half precision, as backbones are served and as training loops validate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.control import Inputs, differences
from conformance.control.calls import parameters_in
from conformance.subject.subject import Subject
from conformance.suite.generating import left_padded, that_generates
from conformance.suite.product import BUILDS

_LENGTH, _NEW = 300, 5
"""Tokens of the longer prompt and behind it: bfloat16 counts to 256."""


@requirement("GEN-05", MUST, profile="numerics")
def test_half_precision_generates_as_the_librarys(subject: Subject) -> None:
    """Under autocast and with parameters in half precision each step of a generation has the
    logits of the library's own model, up to rounding."""
    together, judged = that_generates(subject), 0
    dtype, inputs = together.half, together.inputs
    states: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
        "under autocast": lambda _: torch.autocast("cpu", dtype=dtype),
        f"with parameters in {dtype}": lambda backbone: parameters_in(backbone, dtype),
    }
    for build, backbone, control in together.pairs():
        exact = _logits(control, inputs, nullcontext())
        for told, state in states.items():
            wanted = torch.zeros(0)
            with refusal() as refused:
                wanted = _logits(control, inputs, state(control))
            if refused or not wanted.isfinite().any():
                continue  # the library's own breaks down there
            found = torch.zeros(0)
            with refusal() as refused:
                found = _logits(backbone, inputs, state(backbone))
            judged += 1
            apart = next(
                differences({"logits": found}, {"logits": wanted}, {"logits": exact}), None
            )
            require(
                apart is None,
                observed=f"built with {BUILDS.get(build, 'the defaults')}, {told}, generation "
                + (
                    f"raises {type(refused[0]).__name__}: {quoted(str(refused[0]), 160)}"
                    if refused
                    else f"goes by other logits: {apart.told if apart else ''}"
                ),
                expected="what the library's own model computes, up to rounding",
                mend="leave caches, masks and positions of `generate` to the library, in every "
                "precision",
            )
    if not judged:
        raise NotApplicable("the library's model does not generate in half precision")


def _logits(backbone: Any, inputs: Inputs, state: AbstractContextManager[Any]) -> torch.Tensor:
    """The logits of each step, (steps, batch, ids): what is emitted is given, so that rounding
    cannot lead two of them apart."""
    ids, mask = left_padded(inputs, 2, _LENGTH)
    given = inputs.ordinary[:_NEW].tolist()

    def allowed(_: int, so_far: torch.Tensor) -> list[int]:
        return [given[len(so_far) - ids.shape[1]]]

    with state, torch.no_grad():
        out = backbone.llm.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=_NEW, do_sample=False,
            prefix_allowed_tokens_fn=allowed, pad_token_id=int(inputs.ordinary[-1]),
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    return torch.stack(out.logits)[..., inputs.columns]
