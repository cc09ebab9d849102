"""SCL: the published size, in the memory of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from conformance.assertions import require, within
from conformance.catalogue import MUST, requirement
from conformance.hub.language_model import decoder_config
from conformance.hub.weights import has_tied_head, norm_centre
from conformance.oracle import architecture_of
from conformance.parity.full_size import Measured, all_cores, full_size_parity
from conformance.parity.gates import MODULE_RATIO, SEMANTICS, conditions
from conformance.parity.probes import drawn_ids
from conformance.parity.reference import names_in, prefix_of
from conformance.parity.streaming import OneLayer, SeededWeights, on_meta, read_from
from conformance.subject.subject import Subject
from conformance.suite.models import configurable_class, judging_config, published_shapes

LENGTH = 32
"""Tokens of the streamed run: enough for attention, and few compared with the weights that each
layer reads anyway."""


@requirement("SCL-01", MUST, profile="scale", needs=["CON-01"])
def test_the_published_size_is_the_family_s(subject: Subject) -> None:
    """The published configuration's parameter count, shapes and names are what the family's table
    says (on the meta device)."""
    config = decoder_config(subject.recipe.config)
    expected = published_shapes(config)
    llm = on_meta(configurable_class(subject), config, _attention(subject))
    with judging_config(expected="the names of the checkpoint", mend=_MEND):
        architecture = architecture_of(config)
        prefix = prefix_of(llm, architecture)
    head = names_in(llm, prefix, architecture.names).head
    published_names = {f"{head}.weight": f"{architecture.names.head}.weight"}
    named = {name.removeprefix(prefix): tensor for name, tensor in llm.named_parameters()}
    found = {published_names.get(name, name): tuple(tensor.shape) for name, tensor in named.items()}
    wrong = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    first = wrong[0] if wrong else ""
    require(
        not wrong,
        observed=f"at the published size {len(wrong)} parameters have another name or shape; "
        f"`{first}` is "
        f"{_told(found.get(first))}",
        expected=_told(expected.get(first)),
        mend=_MEND,
        wrong=wrong[:32],
    )
    count = sum(tensor.numel() for tensor in llm.parameters())
    published = subject.recipe.parameters
    require(
        published in (None, count),
        observed=f"the model has {count:,} parameters",
        expected=f"{published:,}, as published" if published else "",
        mend=_MEND,
        parameters=count,
    )


@requirement("SCL-02", MUST, profile="scale", needs=["SCL-01"], uses=["half_precision_dtype"])
def test_every_layer_agrees_at_the_published_size(subject: Subject) -> None:
    """Full-size streamed parity: every layer and the head pass gates 1 and 3 at the published
    widths, with memory bounded by one layer."""
    checkpoint = subject.real_checkpoint
    config = decoder_config(subject.recipe.config) if checkpoint is None else checkpoint.config
    shapes = published_shapes(config)
    vocabulary = int(config["vocab_size"])
    tied = has_tied_head(shapes, vocabulary)
    seeded = SeededWeights(
        shapes, seed=subject.seed, vocabulary=vocabulary, tied=tied, centre=norm_centre(config)
    )
    weights = OneLayer(
        shapes,
        seeded.write if checkpoint is None else read_from(checkpoint),
        subject.training.half_precision_dtype,
    )
    with all_cores():
        for measured in full_size_parity(
            configurable_class(subject),
            config,
            weights,
            drawn_ids(vocabulary, _length(config), subject.seed),
            attention=_attention(subject),
            announce=lambda step: subject.announce(f"SCL-02, {step}"),
        ):
            _hold(measured, weights)


_MEND = (
    "leave sizes, biases and tying to the published `config.json`, and modules under the "
    "names of the checkpoint"
)


def _hold(measured: Measured, weights: OneLayer) -> None:
    """Hold one number to the gate that it was measured for."""
    path, value = measured.path, measured.value
    where = f"at the published size, the {measured.what} of `{path}`"
    if measured.gate == "semantics":
        within(
            "full-size semantics",
            value,
            SEMANTICS,
            observed=f"{where} differs from the float64 reference's by a relative RMS of "
            f"{value:.2g}" + ("" if value <= SEMANTICS else _not_finite(path, weights)),
            expected=f"at most {SEMANTICS:g}",
            mend=f"compare `{path}` with the family's paper: epsilon, theta, scale, order of "
            f"heads, residuals",
            conditions=conditions(torch.float32, "cpu"),
            module=path,
        )
        return
    within(
        "full-size module ratio",
        value,
        MODULE_RATIO,
        observed=f"{where}, in {weights.dtype}, is off by {value:.3g} times what rounding does to "
        f"the reference's",
        expected=f"at most {MODULE_RATIO} times",
        mend="take norms, softmax and rotary angles in float32 and round once, where the result "
        "is handed on",
        conditions=conditions(weights.dtype, "cpu"),
        module=path,
    )


def _not_finite(path: str, weights: OneLayer) -> str:
    broken = weights.not_finite(path)
    return f"; `{broken}` holds NaN or infinity" if broken else ""


def _length(config: Mapping[str, Any]) -> int:
    """A length within every window: FWD-04 and FWD-01 check their edges, where releases count
    differently."""
    architecture = architecture_of(config)
    return min(LENGTH, architecture.positions, *filter(None, architecture.windows))


def _attention(subject: Subject) -> str:
    return str(getattr(subject.training.llm.config, "_attn_implementation", None) or "eager")


def _told(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"of shape {shape}"
