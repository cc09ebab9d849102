"""Forward: any call in any state, beside the control.

The other clauses look closely at one plain state; these ask whether all others agree with it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

from conformance.assertions import (
    NotApplicable,
    is_slip_of_ours,
    refusal,
    require,
    within,
)
from conformance.catalogue import MUST, requirement
from conformance.control import Inputs
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS, conditions
from conformance.parity.library import attention_of, text_config
from conformance.subject.subject import Subject
from conformance.suite.product import (
    BUILDS,
    OF_TRAINING,
    compared,
    failure,
    first_finding,
)


@requirement(
    "FWD-14", MUST, profile="numerics",
    needs=["CON-16", "EMB-03", "EMB-04", "FWD-01", "FWD-02", "HALF-02", "HALF-05", "HALF-07"],
    uses=["forward"],
)  # fmt: skip
def test_any_call_in_any_state(subject: Subject) -> None:
    """In every state and by every call the backbone returns what the library's own model returns
    from the same checkpoint: every pair of build, mode, precision, attention, form of input, mask,
    positions, cache, labels, output, history, batch, length and ranks of a process group is
    covered."""
    together = compared(subject)
    found = first_finding(subject, lambda quantity: quantity not in OF_TRAINING)
    if found is not None:
        raise failure(
            together,
            found,
            mend="hand every argument through in every state, and keep nothing between calls",
        )


@requirement("FWD-14", MUST, profile="numerics")
def test_arguments_may_stand_by_position(subject: Subject) -> None:
    """By position the arguments are ids, mask, positions, cache, embeddings and labels, in the
    library's order; what takes keywords alone refuses them."""
    together = compared(subject)
    backbone = together.backbone("training")
    ids = together.inputs.ids(2, 9)
    mask, positions = torch.ones_like(ids), torch.arange(9).repeat(2, 1)
    mask[1, :3] = 0
    positions[1] = (positions[1] - 3).clamp(min=0)
    named = {"attention_mask": mask, "position_ids": positions, "past_key_values": None,
             "inputs_embeds": None, "labels": ids}  # fmt: skip
    for count in range(1, len(named) + 1):
        given = dict(list(named.items())[:count])
        with torch.no_grad():
            wanted = backbone(input_ids=ids, **given)
            with refusal() as refused:
                found = backbone(ids, *given.values())
        if refused:
            break
        error = relative_rms(
            found.logits[mask.bool()][:, together.inputs.columns],
            wanted.logits[mask.bool()][:, together.inputs.columns],
        )
        if "labels" in given:
            error = max(error, relative_rms(found.loss, wanted.loss))
        within(
            "logits by position",
            error,
            SEMANTICS,
            observed=f"with the arguments up to `{list(given)[-1]}` given by position, the answer "
            f"differs by a relative RMS of {error:.2g} from that by keywords",
            expected="the same answer: input_ids, attention_mask, position_ids, past_key_values, "
            "inputs_embeds, labels is the order of every model of the library",
            mend="keep the library's order of arguments, or take them by keyword alone",
            conditions=conditions(found.logits.dtype, found.logits.device),
        )


@requirement("FWD-14", MUST, profile="numerics")
def test_large_padded_batches_keep_their_rows(subject: Subject) -> None:
    """Rows of a large batch, padded on either side, come back where they were."""
    together = compared(subject)
    ids = together.inputs.ids(5, 131)
    lengths = torch.tensor([90, 131, 17, 64, 120])[:, None]
    places = torch.arange(131)
    for side, mask in {
        "right": (places < lengths).long(), "left": (places >= 131 - lengths).long(),
    }.items():  # fmt: skip
        for build, backbone, control in together.pairs():
            call = {"input_ids": ids, "attention_mask": mask}
            with torch.no_grad():
                wanted = control(**call).logits[..., together.inputs.columns]
                found = backbone(**call).logits[..., together.inputs.columns]
            apart = [
                row
                for row, real in enumerate(mask.bool())
                if relative_rms(found[row, real], wanted[row, real]) > SEMANTICS
            ]
            require(
                not apart,
                observed=f"built with {BUILDS.get(build, 'the defaults')}, in a batch of 5 rows "
                f"over 131 tokens, padded on the {side}, the logits of rows {apart} are not "
                "those of the library's own model",
                expected="each row's own logits in its place",
                mend="put rows back where they were, whatever order they are computed in",
            )


@requirement("FWD-14", MUST, profile="numerics")
def test_unusual_positions_and_masks_count(subject: Subject) -> None:
    """Positions may be one row for a whole batch, texts may be packed otherwise in each row, and a
    mask may be in half precision, as hosts cast batches: the library's own model takes them so."""
    together, judged = compared(subject), 0
    for told, call in _unusual_calls(together.inputs).items():
        for build, backbone, control in together.pairs():
            real = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
            with torch.no_grad():
                with refusal() as refused:
                    wanted = control(**call).logits[real][:, together.inputs.columns]
                    usual = control(**_usual(call)).logits[real][:, together.inputs.columns]
                # What the library cannot do, or does otherwise itself, is not asked of the subject.
                if refused or not relative_rms(wanted, usual) <= SEMANTICS:
                    continue
                found = backbone(**call).logits[real][:, together.inputs.columns]
            judged += 1
            error = relative_rms(found, wanted)
            within(
                "logits",
                error,
                SEMANTICS,
                observed=f"built with {BUILDS.get(build, 'the defaults')}, with {told} the logits "
                f"differ by a relative RMS of {error:.2g}",
                expected="what the library's own model returns for the same call",
                mend="hand positions and masks on as they are",
                conditions=conditions(found.dtype, found.device),
            )
    if not judged:
        raise NotApplicable("the library's own model takes no such calls")


def _usual(call: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same call in the form that every model takes."""
    usual = dict(call)
    if "attention_mask" in usual:
        usual["attention_mask"] = usual["attention_mask"].long()
    if "position_ids" in usual:
        usual["position_ids"] = usual["position_ids"].expand_as(usual["input_ids"])
    return usual


def _unusual_calls(inputs: Inputs) -> dict[str, dict[str, torch.Tensor]]:
    ids, long = inputs.ids(2, 10), inputs.ids(1, 300)
    counted = torch.arange(10)
    packed = torch.stack([torch.cat([counted[:cut], counted[: 10 - cut]]) for cut in (4, 7)])
    padded = torch.ones(1, 300, dtype=torch.bfloat16)
    padded[:, :9] = 0
    return {
        "positions of one row for a batch of two": {
            "input_ids": ids, "position_ids": packed[:1], "attention_mask": torch.ones_like(ids),
        },
        "texts that are packed otherwise in each row": {"input_ids": ids, "position_ids": packed},
        "a mask in bfloat16 over 300 tokens": {"input_ids": long, "attention_mask": padded},
    }  # fmt: skip


@requirement("FWD-14", MUST, profile="numerics")
def test_no_cache_is_kept_where_none_is_wanted(subject: Subject) -> None:
    """With `use_cache=False` no cache comes back, however it is built."""
    together = compared(subject)
    ids = together.inputs.ids(2, 6)
    for build, backbone, control in together.pairs():
        with torch.no_grad():
            kept = [
                getattr(one(input_ids=ids, use_cache=False), "past_key_values", None) is not None
                for one in (control, backbone)
            ]
        require(
            kept[0] or not kept[1],
            observed=f"built with {BUILDS.get(build, 'the defaults')}, a call with "
            "`use_cache=False` returns a cache",
            expected="none: whoever scores many texts has memory for no cache",
            mend="hand `use_cache` on as it is given, False too",
        )


@requirement("FWD-14", MUST, profile="numerics")
def test_attention_maps_are_the_librarys(subject: Subject) -> None:
    """`output_attentions=True` gives the weights of every layer and head."""
    together, judged = compared(subject), 0
    ids = together.inputs.ids(2, 9)
    for build, backbone, control in together.pairs():
        try:
            wanted = _attention_maps(control, ids)
        except Exception as refused:
            if is_slip_of_ours(refused):
                raise
            continue  # what the library cannot do is not asked of the subject
        if not wanted or any(one is None for one in wanted):
            continue
        judged += 1
        found = _attention_maps(backbone, ids)
        same = [tuple(one.shape) for one in found] == [tuple(one.shape) for one in wanted]
        error = (
            max(relative_rms(one, other) for one, other in zip(found, wanted, strict=True))
            if same
            else float("inf")
        )
        within(
            "attention weights",
            error,
            SEMANTICS,
            observed=f"built with {BUILDS.get(build, 'the defaults')}, the attention weights "
            + (
                f"differ by a relative RMS of {error:.2g}"
                if same
                else f"have the shapes {[tuple(one.shape) for one in found]}"
            ),
            expected="those of the library's own model, "
            f"{len(wanted)} of shape {tuple(wanted[0].shape)}",
            mend="return `attentions` as the language model gives them",
        )
    if not judged:
        raise NotApplicable("the library's model returns no attention weights")


def _attention_maps(backbone: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    with ExitStack() as state:
        state.enter_context(torch.no_grad())
        state.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if hasattr(backbone.llm, "set_attn_implementation"):  # others have no weights to return
            state.enter_context(attention_of(backbone.llm, "eager"))
        output = backbone(input_ids=ids, output_attentions=True)
    return list(getattr(output, "attentions", None) or ())


@requirement("FWD-14", MUST, profile="numerics")
def test_the_config_decides_what_a_call_leaves_open(subject: Subject) -> None:
    """Where a call does not say whether it wants a cache, `llm.config.use_cache` does, as a host
    has set it since."""
    together = compared(subject)
    for build, backbone, control in together.pairs():
        ids = together.inputs.ids(2, 5)
        for wanted in (True, False):
            given = []
            for one in (control, backbone):
                config = text_config(one.llm)
                with mock.patch.object(config, "use_cache", wanted), torch.no_grad():
                    output = one(input_ids=ids)
                given.append(getattr(output, "past_key_values", None) is not None)
            require(
                given[0] == given[1],
                observed=f"built with {BUILDS.get(build, 'the defaults')}, with "
                f"`llm.config.use_cache` set to {wanted} a call that does not say gives "
                f"{'a cache' if given[1] else 'none'}",
                expected=f"{'one' if given[0] else 'none'}, as the library's own model: hosts turn "
                "the cache off to train, and on to evaluate",
                mend="hand `use_cache=None` on: the config is asked at each call",
            )


@requirement("FWD-14", MUST, profile="numerics")
def test_as_many_logits_are_given_as_are_asked_for(subject: Subject) -> None:
    """A model whose `forward` names `logits_to_keep` computes the last logits alone where it is
    asked to: those of a long prompt take gigabytes."""
    together, judged = compared(subject), 0
    ids = together.inputs.ids(2, 9)
    for build, backbone, control in together.pairs():
        if "logits_to_keep" not in inspect.signature(backbone.llm.forward).parameters:
            continue
        shapes = []
        for one in (control, backbone):
            llm: Any = one.llm
            with torch.no_grad(), refusal() as refused:
                shapes.append(tuple(llm(input_ids=ids, logits_to_keep=2).logits.shape[:2]))
            if refused and one is control:  # before transformers 4.50
                raise NotApplicable("the library's own model knows no `logits_to_keep`")
        judged += 1
        require(
            bool(refused) or shapes[0] == shapes[-1],  # which whoever asks hears of
            observed=f"built with {BUILDS.get(build, 'the defaults')}, with logits_to_keep=2 `llm` "
            f"gives logits of shape {(*shapes[-1], '…')} for ids of shape {tuple(ids.shape)}",
            expected=f"{(*shapes[0], '…')}, as the library's own model: generation asks for the "
            "last ones",
            mend="hand `logits_to_keep` on, or do not name it",
        )
    if not judged:
        raise NotApplicable("the model's `forward` names no `logits_to_keep`")
