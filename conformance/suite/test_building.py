"""Construction: the same backbone, however and wherever it is built, and copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from conformance.assertions import (
    NotApplicable,
    quoted,
    refusal,
    require,
    within,
)
from conformance.catalogue import MUST, requirement
from conformance.control import is_for_inference
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS, conditions
from conformance.subject.subject import Subject
from conformance.suite.identity import (
    differing_traits,
    encoding_traits,
    first_of,
    generation_traits,
    plain,
    prompt_traits,
    traits,
    traits_as_text,
)
from conformance.suite.models import built_both_ways, logits_of, probe_ids
from conformance.suite.product import (
    BUILDS,
    LEFT_OUT,
    Compared,
    compared,
)

_LONG = 129
"""Tokens behind which frequencies of eight bits are off by more than rounding."""
_OF_A_HOST = 77
"""A length in tokens that nothing else has."""
_LENGTH = "whether `model_max_length` of the tokenizer is what was asked for"

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def _may_differ_beyond(name: str) -> bool:
    """What may differ where more tokens are asked for than the model has positions: a class may
    offer fewer, or say that it has more."""
    return name == _LENGTH or name.endswith(tuple(f"{one}` of the config" for one in _POSITIONS))


@requirement("CON-16", MUST, needs=["CON-02", "CON-05", "CON-13", "CON-14"])
def test_every_way_of_building_gives_the_same_backbone(subject: Subject) -> None:
    """However it is built (`inference_mode`, `use_flash_attention_2`, without a token, with an
    argument left to its default, for more tokens or fewer, on another rank as launchers start it,
    under another default dtype) or copied, the backbone is the same: configs, modules, dtypes,
    buffers, dropout rates, tokenizer, prompts and the members of the contract. Where
    `inference_mode` is left out, it is built for training; and a copy keeps what a host has
    changed."""
    together = compared(subject)
    for build, argument in BUILDS.items():
        if together.backbone(build) is None:
            continue
        facts, usual = (
            _facts(together, one, trained=not is_for_inference(build))
            | prompt_traits(subject, together.backbone(one))
            for one in (build, "training")
        )
        derived = _derived_generation(together.backbone(build)) if is_for_inference(build) else {}
        differing = {
            name: told
            for name, told in differing_traits(facts, usual).items()
            if not (name in derived and facts.get(name) in (derived[name], None))
            and not (name == _LENGTH and LEFT_OUT.get(build) == "llm_max_length")
            and not (build == "longer" and _may_differ_beyond(name))
        }
        first, found, wanted = first_of(differing)
        require(
            not differing,
            observed=f"with {argument}, {first} is {found}, and {wanted} otherwise",
            expected="the same backbone, however it is built",
            mend="do what does not depend on this argument in one place for all of its values",
            differing=list(differing)[:20],
        )


@requirement("CON-16", MUST)
def test_a_copy_keeps_what_a_host_has_changed(subject: Subject) -> None:
    """A copy is one of the backbone as a host has changed it: with the tokens that it added, the
    side it pads on, what it froze, the length it generates and the mode."""
    for built, backbone in built_both_ways(subject):
        llm, tokenizer = backbone.llm, backbone.get_tokenizer()
        tokenizer.add_tokens(["<a token of the host>"])
        tokenizer.padding_side = "left"
        tokenizer.model_max_length = _OF_A_HOST
        for parameter in llm.get_input_embeddings().parameters():
            parameter.requires_grad_(False)
        if getattr(llm, "generation_config", None) is not None:
            llm.generation_config.max_new_tokens = _OF_A_HOST
        backbone.train()
        with refusal() as refused:
            copied = copy.deepcopy(backbone)
        if refused:
            raise NotApplicable(f"it cannot be copied: {quoted(str(refused[0]))}")
        facts, changed = (
            {
                **traits(one),
                "the number of tokens": len(one.get_tokenizer()),
                "the length of the tokenizer": one.get_tokenizer().model_max_length,
                "what is trained": [n for n, p in one.llm.named_parameters() if p.requires_grad],
                "whether it is in train()": one.training,
            }
            for one in (copied, backbone)
        )
        differing = differing_traits(facts, changed)
        first, found, wanted = first_of(differing)
        require(
            not differing,
            observed=f"built for {built}, changed by a host and copied, {first} is {found}, and "
            f"{wanted} in the original",
            expected="the same: a copy is one of what is there",
            mend="leave copying to Python, or copy the tokenizer and the configs as they are",
            differing=list(differing)[:20],
        )


@requirement("CON-16", MUST)
def test_the_default_dtype_rounds_nothing(subject: Subject) -> None:
    """Built under another default dtype, which whoever saves memory sets, and with the same
    weights, it computes what it computes otherwise: rotary frequencies are made in float32."""
    error = _off_under_bfloat16(subject)
    if error is None:
        raise NotApplicable(
            "it cannot be built under another default dtype, or its weights take it"
        )
    if error > SEMANTICS:
        theirs = _off_under_bfloat16(subject.canonical())
        if theirs is None or theirs > SEMANTICS:
            raise NotApplicable("the library's own model rounds under another default dtype too")
    within(
        "logits under another default dtype",
        error,
        SEMANTICS,
        observed="built under torch.set_default_dtype(torch.bfloat16), with the same weights, the "
        f"logits differ by a relative RMS of {error:.2g}",
        expected="those that it computes otherwise",
        mend="name the dtype wherever frequencies are computed: `torch.arange(…, "
        "dtype=torch.int64).float()`",
        conditions=conditions(torch.float32, torch.device("cpu")),
    )


def _off_under_bfloat16(subject: Subject) -> float | None:
    """How far the logits of an instance that was built under bfloat16 are off, with the weights of
    the shared one; None if it cannot be built so."""
    usual, ids = subject.training, probe_ids(subject, 1, _LONG)
    with refusal(), torch.no_grad():
        with _default_dtype(torch.bfloat16):
            backbone = subject.build().eval()
        if [p.dtype for p in backbone.llm.parameters()] != [
            p.dtype for p in usual.llm.parameters()
        ]:
            return None  # it takes its own dtype from the default, and the library its buffers'
        for parameter in backbone.llm.parameters():
            parameter.data = parameter.data.float()
        backbone.llm.load_state_dict(usual.llm.state_dict())
        # Those of rows that no token has may be minus infinity.
        found, wanted = (
            logits_of(one(input_ids=ids))[..., : len(subject.tokenizer)]
            for one in (backbone, usual)
        )
        return relative_rms(found, wanted)
    return None


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@requirement("CON-16", MUST)
def test_what_has_a_default_may_be_left_out(subject: Subject) -> None:
    """`inference_mode` and `llm_max_length` may be left out where the constructor shows a
    default."""
    together = compared(subject)
    for build, argument in LEFT_OUT.items():
        # Flash attention may be the default: CON-05 judges what it asks for. A token's default may
        # be a file of the author's.
        judged = argument in ("inference_mode", "llm_max_length") and subject.has_default(argument)
        if not judged or subject.lacks(argument) or together.backbone(build) is not None:
            continue
        with refusal() as refused:
            subject.build(left_out=[argument])
        require(
            not refused,
            observed=f"with {argument} left out, construction raised "
            f"{type(refused[0]).__name__ if refused else ''}: {quoted(''.join(map(str, refused)))}",
            expected="the backbone that its default gives",
            mend=f"give {argument} a default that can be built, or none",
            argument=argument,
        )


@requirement("CON-18", MUST, needs=["CON-01", "CON-04"])
def test_another_process_builds_the_same(subject: Subject) -> None:
    """Another process, with another hash seed, builds the same backbone: weights, configs, ids of
    every token, order of parameters, prompts and wrap units. Each rank of a training run builds its
    own."""
    if subject.elsewhere is None:
        raise NotApplicable("no second process is started here; `conformance certify` starts one")
    own = traits_as_text(subject)
    for other in subject.elsewhere():
        differing = {} if other.raised else differing_traits(other.traits, own)
        first, found, wanted = first_of(differing)
        told = (
            f"building it raised {other.raised} in a second process"
            if other.raised
            else f"{first} is {found} in a second process, and {wanted} in the first"
        )
        require(
            not other.raised and not differing,
            observed=told,
            expected="the same backbone in every process: each rank of a run builds its own",
            mend="take no order and no number from a set, a hash, the clock or the process id: "
            "sort before you number",
            differing=list(differing)[:20],
        )


def _facts(together: Compared, build: str, *, trained: bool) -> dict[str, Any]:
    """What can be read off an instance and must not depend on how it was built. Beside an instance
    that is not `trained` weights count for nothing, parameters may be frozen, and TOK-09 judges the
    tokenizer."""
    backbone = together.backbone(build)
    llm, tokenizer = backbone.llm, backbone.get_tokenizer()
    facts = traits(backbone)
    facts |= {f"the dtype of `{n}`": dtype for n, dtype in together.dtypes[build].items()}
    facts[_LENGTH] = tokenizer.model_max_length == together.asked_length(build)
    if trained:
        facts |= {f"the sum of `{n}`": total for n, total in together.sums[build].items()}
        facts |= {f"requires_grad of `{n}`": p.requires_grad for n, p in llm.named_parameters()}
        facts |= encoding_traits(tokenizer)
    return facts


def _derived_generation(backbone: Any) -> dict[str, Any]:
    """What the library fills a generation config with where a model is built from its config alone,
    as openvla builds its model for inference: no published file is read there. CON-13 holds its eos
    ids and bounds, PAD-04 its pad."""
    from transformers import GenerationConfig

    if not plain(getattr(backbone.llm, "generation_config", None)).get("_from_model_config"):
        return {}
    return generation_traits(GenerationConfig.from_model_config(backbone.llm.config))
