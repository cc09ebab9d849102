"""TRN: what training loops do besides one forward pass and one backward pass behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from conformance.assertions import NotApplicable, refusal, require, within
from conformance.catalogue import MUST, requirement
from conformance.control import Inputs, embeddings_of
from conformance.control.calls import without_dropout
from conformance.parity.equality import (
    GRADIENT_RELATIVE_RMS,
    gradients_of,
    worst_gradient,
)
from conformance.subject.subject import Subject
from conformance.suite.product import BUILDS, compared


def _loss(backbone: Any, inputs: Inputs, offset: int = 0, length: int = 9) -> Any:
    ids = inputs.ids(2, length, offset)
    return backbone(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss


def _scored(backbone: Any, inputs: Inputs) -> None:
    """As by a reference model, or for a log: in eval(), without gradients, of the same shape."""
    backbone.eval()
    with torch.no_grad():
        _loss(backbone, inputs, offset=3)
    backbone.train()


def _generated(backbone: Any, inputs: Inputs) -> None:
    ids = inputs.ids(2, 9, 4)
    backbone.eval()
    with torch.no_grad():
        backbone.llm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False,
            pad_token_id=int(inputs.ordinary[0]),
        )  # fmt: skip
    backbone.train()


_MEANWHILE: Mapping[str, Callable[[Any, Inputs], Any]] = {
    "another batch": lambda backbone, inputs: _loss(backbone, inputs, offset=1),
    "a longer batch": lambda backbone, inputs: _loss(backbone, inputs, offset=2, length=20),
    "a batch in eval() without gradients": _scored,
    "generation": _generated,
    "a state dict": lambda backbone, _: backbone.state_dict(),
}
"""What may come between a forward pass and its backward pass."""


@requirement("TRN-05", MUST, profile="training")
def test_a_backward_pass_is_its_own_forwards(subject: Subject) -> None:
    """What comes between a forward pass and its backward pass (another batch, as for preference
    losses and in pipelines, a validation, generation) changes no gradient, with checkpointing and
    without."""
    together = compared(subject)
    for build in ("training", "checkpointed"):
        backbone = together.backbone(build)
        if backbone is None:
            continue
        with without_dropout(backbone):
            backbone.train()
            _loss(backbone, together.inputs).backward()
            wanted = gradients_of(backbone.llm)
            backbone.llm.zero_grad(set_to_none=True)
        for told, happens in _MEANWHILE.items():
            with without_dropout(backbone):
                backbone.train()
                loss = _loss(backbone, together.inputs)
                with refusal() as refused:
                    kept = happens(backbone, together.inputs)
                if refused:  # what generates nothing, say
                    backbone.llm.zero_grad(set_to_none=True)
                    backbone.eval()
                    continue
                loss.backward()
                found = gradients_of(backbone.llm)
                backbone.llm.zero_grad(set_to_none=True)
                backbone.eval()
                del kept, loss
            wrong, name = worst_gradient(found, wanted)
            within(
                "gradient of an earlier forward pass",
                wrong,
                GRADIENT_RELATIVE_RMS,
                observed=f"built with {BUILDS.get(build, 'the defaults')}, with {told} between a "
                f"forward pass and its backward pass the gradient of `{name}` differs by "
                f"{wrong:.2g}",
                expected="the gradient of that forward pass",
                mend="keep what a backward pass needs in `ctx.save_for_backward`, and not on a "
                "module",
            )


@requirement("TRN-05", MUST, profile="training")
def test_gradients_are_cleared(subject: Subject) -> None:
    """`zero_grad` clears every gradient, of what has been frozen since too."""
    backbone = compared(subject).backbone("training")
    for told, frozen, to_none in (
        ("zero_grad()", False, True), ("zero_grad(set_to_none=False)", False, False),
        ("requires_grad_(False) and zero_grad()", True, True),
    ):  # fmt: skip
        backbone.train()
        _loss(backbone, compared(subject).inputs).backward()
        backbone.eval()
        trained = [p for p in backbone.parameters() if p.requires_grad]
        if frozen:
            backbone.requires_grad_(False)
        backbone.zero_grad(**({} if to_none else {"set_to_none": False}))
        left = [n for n, p in backbone.named_parameters() if p.grad is not None and p.grad.any()]
        for parameter in trained:
            parameter.requires_grad_(True)
        backbone.llm.zero_grad(set_to_none=True)
        require(
            not left,
            observed=f"after {told}, {len(left)} parameters have gradients, the first is "
            f"{left[:1]}",
            expected="none: what stays is added to the next step's, and takes as much memory as "
            "the model",
            mend="leave `zero_grad` to the module",
        )


@requirement("TRN-04", MUST, profile="training")
def test_patches_learn_where_parameters_do(subject: Subject) -> None:
    """However it was built, and in either mode, if a loss flows back to the parameters it flows
    back to the patches too: a projector is trained in front of a model that was built for
    inference."""
    together, judged = compared(subject), 0
    for build, backbone, _ in together.pairs():
        for mode in ("train", "eval"):
            getattr(backbone, mode)()
            ids = together.inputs.ids(2, 7)
            given = embeddings_of(backbone, ids).detach().requires_grad_()
            with refusal() as refused:
                backbone(
                    inputs_embeds=given, attention_mask=torch.ones_like(ids), labels=ids
                ).loss.backward()
            learns = any(gradient.any() for gradient in gradients_of(backbone.llm).values())
            backbone.llm.zero_grad(set_to_none=True)
            backbone.eval()
            if refused or not learns:
                continue  # it says so, or nothing is trained
            judged += 1
            require(
                given.grad is not None and bool(given.grad.any()),
                observed=f"built with {BUILDS.get(build, 'the defaults')}, in {mode}(), a loss "
                "trains the parameters, and nothing flows back to `inputs_embeds`",
                expected="a gradient for what a projector has made",
                mend="detach nothing that is handed in; whoever wants no gradient says "
                "`torch.no_grad()`",
            )
    if not judged:
        raise NotApplicable("no parameter is trained")
