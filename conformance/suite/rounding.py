"""Holds a half-precision model to the rounding gate, whole and module by module, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from conformance.assertions import NotApplicable, within
from conformance.oracle import Place
from conformance.parity.gates import (
    EXACT_POSITIONS,
    ROUNDING_LENGTH,
    calibration_for,
    conditions,
    rounding_ratio,
)
from conformance.parity.kernels import precision_beside
from conformance.parity.modules import first_outside, module_errors
from conformance.parity.probes import drawn_ids
from conformance.parity.reference import Reference
from conformance.subject.subject import Subject
from conformance.suite.models import positions_of

_REACH = EXACT_POSITIONS + EXACT_POSITIONS // 8
"""Tokens of a text that reaches far positions."""


@contextmanager
def far_sighted(subject: Subject) -> Iterator[Mapping[str, Any]]:
    """The published config, with windows that hold the whole of a far text; what is built or loaded
    meanwhile has them.

    Published windows are thousands of tokens wide, those of probe checkpoints a few. A rounded
    frequency turns a query by an angle that grows with its distance from the key, and within a few
    tokens nothing shows.
    """
    config = subject.published_config
    window = config.get("sliding_window")
    if not window or window >= _REACH:
        yield config
        return
    wider = {"sliding_window": _REACH}
    with subject.hub_variant(lambda snapshot: subject.change_config(snapshot, wider)):
        yield {**config, **wider}


def far_batch(reference: Reference, seed: int) -> tuple[torch.Tensor, int]:
    """Ids that reach past position 1,024, or as far as the family goes, and where the far ones
    begin."""
    far = _REACH - EXACT_POSITIONS
    length = min(_REACH, reference.architecture.positions)
    return drawn_ids(reference.vocabulary, length, seed), length - far


def rounding_batch(llm: Any, vocabulary: int, seed: int) -> torch.Tensor:
    """Ids of the length at which the gates are calibrated, or as far as the family goes."""
    return drawn_ids(vocabulary, min(ROUNDING_LENGTH, positions_of(llm)), seed)


def rounds_alike(
    reference: Reference,
    dtype: torch.dtype,
    run: Callable[[], torch.Tensor],
    ids: torch.Tensor,
    begin: int = 0,
    *,
    mend: str = "look for a dtype that is hard-coded, or rounded more often than the reference "
    "rounds it",
) -> None:
    """Hold the logits that `run` gives, from position `begin` on, to gate 2."""
    place = Place.of(torch.ones_like(ids))
    some = reference.spread(2048).to(ids.device)
    exact, rounded = (
        decoder.logits(decoder.embed(ids), place, tokens=some)[:, begin:]
        for decoder in (reference.decoder(), reference.decoder(precision_beside(run, dtype)))
    )
    with torch.no_grad():
        observed = run()[:, begin:, some]
    within_rounding(
        rounding_ratio(observed, exact, rounded),
        f"in {dtype}, over positions {begin} to {ids.shape[1]}",
        mend,
        observed,
    )


def modules_round_alike(llm: Any, reference: Reference, ids: torch.Tensor) -> None:
    """Hold each module of `llm`, given the reference's input, to gate 3.

    Raises:
        NotApplicable: if no module of the model has a name that the reference knows.
    """
    parameter = next(llm.parameters())
    dtype = parameter.dtype

    def run() -> Any:
        return llm(input_ids=ids)

    errors = module_errors(
        llm,
        reference,
        run,
        reference.decoder().embed(ids),
        Place.of(torch.ones_like(ids)),
        precision_beside(run, dtype),
    )
    if not errors:
        raise NotApplicable("none of the model's modules has the name that the reference knows")
    bound = calibration_for(parameter.device).bounds["module ratio"]
    outside = first_outside(errors, bound)
    path, ratio = outside or max(errors.items(), key=lambda item: item[1])
    within(
        "module ratio",
        ratio,
        bound,
        observed=f"in {dtype}, `{path}`, given the reference's input, is off by {ratio:.3g} times "
        f"what rounding does to the reference's own",
        expected=f"at most {bound} times",
        mend="take norms, softmax and rotary angles in float32 and round once, where the result "
        "is handed on",
        conditions=conditions(dtype, parameter.device),
        module=path,
    )


def within_rounding(ratio: float, where: str, mend: str, observed: torch.Tensor) -> None:
    """Hold the rounding ratio of the logits `observed` to gate 2."""
    bound = calibration_for(observed.device).bounds["rounding ratio"]
    within(
        "rounding ratio",
        ratio,
        bound,
        observed=f"{where}, the logits are off by {ratio:.3g} times what rounding does to the "
        f"reference",
        expected=f"at most {bound} times",
        mend=mend,
        conditions=conditions(observed.dtype, observed.device),
    )
