"""The subject in every state, by every call and after every history, beside its control.

The other clauses look closely at one plain state; these ask whether all others agree with it.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from conformance.assertions import (
    ClauseFailure,
    NotApplicable,
    is_slip_of_ours,
    quoted,
    refusal,
    require,
    within,
)
from conformance.catalogue import MUST, requirement
from conformance.control import Control, Inputs, embeddings_of, is_for_inference
from conformance.control.calls import without_dropout
from conformance.control.life import STEPS, probe, take
from conformance.control.overlap import overlapping
from conformance.control.states import LLM_MAX_LENGTH
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS, conditions
from conformance.parity.library import attention_of, text_config
from conformance.subject.subject import Subject
from conformance.suite.identity import (
    encoding_traits,
    generation_traits,
    plain,
    traits,
    traits_as_text,
)
from conformance.suite.models import built_both_ways, decoder_layers, logits_of
from conformance.suite.product import (
    LEFT_OUT,
    OF_TRAINING,
    Compared,
    compared,
    failure,
    first_finding,
)
from conformance.suite.properties import for_all

_BUILDS = {
    "inference": "inference_mode=True", "flash": "use_flash_attention_2=True",
    "no token": "hf_token=None", "long": "the llm_max_length that is published",
    "all at once": "inference_mode=True, use_flash_attention_2=True, hf_token=None and the "
    "llm_max_length that is published",
    "copied": "copy.deepcopy",
    "another rank": "RANK and LOCAL_RANK = 1, and ACCELERATE_MIXED_PRECISION = bf16, in the "
    "environment, as launchers set them",
    **{build: f"{argument} left out" for build, argument in LEFT_OUT.items()},
}  # fmt: skip
_LIVES = (
    ("forward", "masked", "generate", "forward", "step", "masked", "reload", "decode far",
     "far positions", "patches", "train", "step", "eval", "forward"),
)  # fmt: skip
"""Histories that are tried before any is drawn."""
_ABSENT = "absent"
_OF_A_HOST = 77
"""A length in tokens that nothing else has."""
_LENGTH = "whether `model_max_length` of the tokenizer is what was asked for"


@requirement("CON-16", MUST, needs=["CON-02", "CON-05", "CON-13", "CON-14"])
def test_every_way_of_building_gives_the_same_backbone(subject: Subject) -> None:
    """However it is built (`inference_mode`, `use_flash_attention_2`, without a token, with an
    argument left to its default, on another rank as launchers start it) or copied, the backbone
    is the same: configs, modules, dtypes, buffers, dropout rates, tokenizer and the members of
    the contract. Where `inference_mode` is left out, it is built for training; and a copy keeps
    what a host has changed."""
    together = compared(subject)
    for build, argument in _BUILDS.items():
        if together.backbone(build) is None:
            continue
        facts, plain = (
            _facts(together, one, trained=not is_for_inference(build))
            for one in (build, "training")
        )
        derived = _derived_generation(together.backbone(build)) if is_for_inference(build) else {}
        differing = [
            name
            for name in {**plain, **facts}
            if not _equal(facts.get(name, _ABSENT), plain.get(name, _ABSENT))
            and not (name in derived and facts.get(name) in (derived[name], None))
            and not (name == _LENGTH and LEFT_OUT.get(build) == "llm_max_length")
        ]
        first = differing[0] if differing else ""
        found, wanted = (quoted(of.get(first, _ABSENT)) for of in (facts, plain))
        require(
            not differing,
            observed=f"with {argument}, {first} is {found}, and {wanted} otherwise",
            expected="the same backbone, however it is built",
            mend="do what does not depend on this argument in one place for all of its values",
            differing=differing[:20],
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
        differing = [
            name
            for name in {**changed, **facts}
            if not _equal(facts.get(name, _ABSENT), changed.get(name, _ABSENT))
        ]
        first = differing[0] if differing else ""
        found, wanted = (quoted(of.get(first, _ABSENT)) for of in (facts, changed))
        require(
            not differing,
            observed=f"built for {built}, changed by a host and copied, {first} is {found}, and "
            f"{wanted} in the original",
            expected="the same: a copy is one of what is there",
            mend="leave copying to Python, or copy the tokenizer and the configs as they are",
            differing=differing[:20],
        )


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
    """Another process, in which strings hash otherwise, builds the same backbone: weights, configs,
    ids of every token, order of parameters, prompts and wrap units. Each rank of a training run
    builds its own."""
    if subject.elsewhere is None:
        raise NotApplicable("no second process is started here; `conformance certify` starts one")
    own, elsewhere = traits_as_text(subject), subject.elsewhere()
    told = f"construction raised {elsewhere.raised} in a second process"
    differing = [
        name
        for name in {**own, **elsewhere.traits}
        if own.get(name, _ABSENT) != elsewhere.traits.get(name, _ABSENT)
    ]
    if not elsewhere.raised:
        first = differing[0] if differing else ""
        found, wanted = (quoted(of.get(first, _ABSENT)) for of in (elsewhere.traits, own))
        told = f"{first} is {found} in a second process, and {wanted} in the first"
    require(
        not elsewhere.raised and not differing,
        observed=told,
        expected="the same backbone in every process: each rank of a run builds its own",
        mend="let no order or number come out of a set, a hash, a clock or the process itself: "
        "sort what you number",
        differing=differing[:20],
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
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, in a batch of 5 rows "
                f"over 131 tokens, padded on the {side}, the logits of rows {apart} are not "
                "those of the library's own model",
                expected="each row's own logits in its place",
                mend="put rows back where they were, whatever order they are computed in",
            )


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
            observed=f"built with {_BUILDS.get(build, 'the defaults')}, a call with "
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
            observed=f"built with {_BUILDS.get(build, 'the defaults')}, the attention weights "
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


@requirement("FWD-15", MUST, profile="numerics", needs=["FWD-14"], uses=["forward"])
def test_edge_histories_leave_no_trace(subject: Subject) -> None:
    """After any history (calls, generation, steps of training, a state dict out and in, modes,
    which a host may mix) the backbone computes what its control computes after the same, and two
    calls at once get what each gets alone; no output is kept, a state dict holds what is frozen,
    and no two backbones share tensors, tokenizer or configs."""
    for steps in _LIVES:
        _live(compared(subject), list(steps))


@requirement("FWD-15", MUST, profile="numerics")
@for_all(examples=3, steps=lambda _: st.lists(st.sampled_from(STEPS), min_size=3, max_size=8))
def test_drawn_histories_leave_no_trace(subject: Subject, steps: list[str]) -> None:
    """After any drawn history the backbone computes what its control computes."""
    _live(compared(subject), steps)


@requirement("FWD-15", MUST, profile="numerics")
def test_a_call_is_not_taken_for_the_last_one(subject: Subject) -> None:
    """A call that differs from the last one in the middle alone, or in one row, is computed
    anew."""
    together = compared(subject)
    for build, form, training in (
        ("training", "ids", False),
        ("training", "embeddings", not together.has_dropout),
        ("inference", "ids", False),
        ("inference", "embeddings", False),
    ):
        backbone, control = together.backbone(build), together.control(build)
        if backbone is None:
            continue
        last, others = _alike(together.inputs)
        for told, call in others.items():
            with _in_mode(training, backbone, control), torch.set_grad_enabled(training):
                wanted = control(**_in_form(form, call, control)).logits
                backbone(**_in_form(form, last, backbone))
                found = backbone(**_in_form(form, call, backbone)).logits
            real = call["attention_mask"].bool()
            columns = together.inputs.columns
            error = relative_rms(found[real][:, columns], wanted[real][:, columns])
            within(
                "logits of the next call",
                error,
                SEMANTICS,
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, "
                f"{'in train(), ' if training else ''}with {form}, after a call that differed in "
                f"{told} alone the logits differ from the control's by a relative RMS of "
                f"{error:.2g}",
                expected="logits of this call: nothing computed for the last one fits",
                mend="keep nothing between calls, or compare everything that it depends on",
                conditions=conditions(found.dtype, found.device),
            )


@requirement("FWD-15", MUST, profile="numerics")
def test_a_call_without_a_cache_begins_anew(subject: Subject) -> None:
    """After calls with a cache, a call that is given none is a sequence of its own, however short
    it is and whatever it leaves out."""
    together = compared(subject)
    for (build, backbone, control), form in product(together.pairs(), ("ids", "embeddings")):
        for rows, length, masked, cached in product((1, 2), (1, 2, 5), (False, True), (None, True)):
            ids = together.inputs.ids(rows, length, offset=3)
            call: dict[str, Any] = {"input_ids": ids}
            call |= {"attention_mask": torch.ones_like(ids)} if masked else {}
            call |= {} if cached is None else {"use_cache": cached}
            with torch.no_grad():
                _decode(backbone, together.inputs.ids(rows, 6), form)
                wanted = control(**_in_form(form, call, control)).logits
                found = backbone(**_in_form(form, call, backbone)).logits
            columns = together.inputs.columns
            same = found.shape[:2] == wanted.shape[:2]
            error = (
                relative_rms(found[..., columns], wanted[..., columns]) if same else float("inf")
            )
            within(
                "logits of a call of its own",
                error,
                SEMANTICS,
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, with {form}, behind "
                f"calls with a cache the logits of a batch of {rows} x {length} tokens"
                f"{'' if masked else ', without a mask'}, given no cache, are off by a relative "
                f"RMS of {error:.2g}",
                expected="those of a sequence that begins here",
                mend="continue the cache that is given, and no other",
                conditions=conditions(found.dtype, found.device),
            )


@requirement("FWD-15", MUST, profile="numerics")
def test_caches_do_not_mix(subject: Subject) -> None:
    """Two caches that are continued in turns, one of a padded batch, know nothing of each other,
    with a mask and without one."""
    together = compared(subject)
    for build, backbone, control in together.pairs():
        wanted, found = (_in_turns(one, together.inputs) for one in (control, backbone))
        for told, expected in wanted.items():
            error = relative_rms(found[told], expected)
            within(
                "logits behind one of two caches",
                error,
                SEMANTICS,
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, with two caches "
                f"continued in turns, the logits of {told} are off by a relative RMS of "
                f"{error:.2g}",
                expected="what the library's own model returns behind that cache",
                mend="keep masks, positions and caches with the call that brings them",
                conditions=conditions(found[told].dtype, found[told].device),
            )


def _in_turns(backbone: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Logits, (2, 1, ids), of steps behind two caches of two rows each."""
    # The padded prompt is the shorter one: its mask would fit behind the other.
    long, short = inputs.ids(2, 9), inputs.ids(2, 6, offset=2)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    step, found = inputs.ids(2, 1, offset=4), {}
    with torch.no_grad():
        plain = backbone(input_ids=long, use_cache=True).past_key_values
        padded = backbone(
            input_ids=short, attention_mask=mask[:, :6], use_cache=True
        ).past_key_values
        for told, cache, given in (
            ("a step without a mask behind a prompt without padding", plain, {}),
            ("a step with a mask behind a padded prompt", padded, {"attention_mask": mask}),
            ("a second step without a mask", plain, {}),
        ):
            output = backbone(input_ids=step, past_key_values=cache, use_cache=True, **given)
            if cache is plain:
                plain = output.past_key_values
            found[told] = output.logits[..., inputs.columns]
    return found


def _decode(backbone: Any, ids: torch.Tensor, form: str) -> None:
    """A prompt, and a token behind it by its cache."""
    prompt = _in_form(form, {"input_ids": ids[:, :-1]}, backbone)
    output = backbone(**prompt, use_cache=True)
    step = _in_form(form, {"input_ids": ids[:, -1:]}, backbone)
    backbone(**step, past_key_values=output.past_key_values, use_cache=True)


@contextmanager
def _in_mode(training: bool, *modules: Any) -> Iterator[None]:
    """In `train()` or `eval()` while the body runs, then in `eval()`."""
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for module in modules:
            module.eval()


def _in_form(form: str, call: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
    """The call with its ids, or with what they are embedded as."""
    if form == "ids":
        return dict(call)
    rest = {name: value for name, value in call.items() if name != "input_ids"}
    return {"inputs_embeds": embeddings_of(backbone, call["input_ids"]), **rest}


def _alike(inputs: Inputs) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A call, and others that agree with it in shape, and at the ends of their first row."""
    ids, other = inputs.ids(2, 12), inputs.ids(2, 12, offset=9)
    mixed = ids.clone()
    mixed[:, 4:8] = other[:, 4:8]
    positions, mask = torch.arange(12).repeat(2, 1), torch.ones_like(ids)
    second, inside = positions.clone(), positions.clone()
    second[1] = (positions[1] - 3).clamp(min=0)
    inside[:] = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 10, 11])
    padded, gap = mask.clone(), mask.clone()
    padded[1, :4] = 0
    gap[:, 4:6] = 0
    last = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return last, {
        "ids in the middle": {**last, "input_ids": mixed},
        "position_ids of the second row": {**last, "position_ids": second},
        "position_ids in the middle": {**last, "position_ids": inside},
        "the attention_mask of the second row": {**last, "attention_mask": padded},
        "the attention_mask in the middle": {**last, "attention_mask": gap},
    }


@requirement("FWD-15", MUST, profile="numerics")
def test_caches_may_be_cut_and_of_a_fixed_size(subject: Subject) -> None:
    """A cache that was cut, as speculative decoding does, is continued from where it then ends, and
    one of a fixed size from what it holds."""
    together, judged = compared(subject), 0
    for build, backbone, control in together.pairs():
        for told, continued in (("cut", _behind_a_cut_cache), ("a StaticCache", _behind_a_room)):
            try:
                wanted = continued(control, together.inputs)
            except Exception:
                continue  # what the library cannot do is not asked of the subject
            judged += 1
            with refusal() as refused:
                found = continued(backbone, together.inputs)
            error = float("inf") if refused else relative_rms(found, wanted)
            within(
                "logits behind a cache",
                error,
                SEMANTICS,
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, behind a cache that is "
                f"{told} "
                + (
                    f"the call raised {quoted(str(refused[0]))}"
                    if refused
                    else f"the logits are off by a relative RMS of {error:.2g}"
                ),
                expected="what the library's own model returns behind such a cache",
                mend="hand caches through, and count positions by what they hold",
            )
    if not judged:
        raise NotApplicable("the installed library neither cuts caches nor takes a StaticCache")


def _behind_a_cut_cache(backbone: Any, inputs: Inputs) -> torch.Tensor:
    """Logits of three tokens behind a cache that was fed six and four and cut to six, (positions,
    ids)."""
    ids, more = inputs.ids(1, 10), inputs.ids(1, 3, offset=1)
    with torch.no_grad():
        cache = backbone(input_ids=ids[:, :6], use_cache=True).past_key_values
        cache = backbone(
            input_ids=ids[:, 6:], past_key_values=cache, use_cache=True
        ).past_key_values
        _keep_what_is_filled(cache)
        cache.crop(-4)  # newer releases take no other number
        logits = backbone(input_ids=more, past_key_values=cache, use_cache=True).logits
    seen: torch.Tensor = logits[0][:, inputs.columns]
    return seen


def _keep_what_is_filled(cache: Any) -> None:
    """Leave out the layers of a cache that hold nothing, which cutting it trips over: a config may
    count layers that the model is declared to be without."""
    layers = getattr(cache, "layers", None)
    if layers is not None:
        cache.layers = [one for one in layers if getattr(one, "keys", None) is not None]


def _behind_a_room(backbone: Any, inputs: Inputs) -> torch.Tensor:
    """Logits of two tokens, one by one, behind nine in a cache that has room for 24, (positions,
    ids)."""
    from transformers import StaticCache

    takes = inspect.signature(StaticCache.__init__).parameters
    options: dict[str, Any] = {
        "max_batch_size": 1, "batch_size": 1, "device": "cpu", "dtype": torch.float32,
    }  # fmt: skip
    cache = StaticCache(
        config=text_config(backbone.llm),
        max_cache_len=24,
        **{name: value for name, value in options.items() if name in takes},
    )
    parts = []
    with torch.no_grad():
        for ids in (inputs.ids(1, 9), *torch.split(inputs.ids(1, 2, offset=1), 1, dim=1)):
            output = backbone(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits[0][:, inputs.columns])
    return torch.cat(parts)


@requirement("FWD-15", MUST, profile="numerics")
def test_a_call_in_another_dtype_changes_no_weights(subject: Subject) -> None:
    """Embeddings in half precision, with or without autocast, leave every parameter its dtype,
    whether the call is refused or not."""
    if subject.lacks("half_precision_dtype"):
        raise NotApplicable("there is no `half_precision_dtype`")
    backbone = subject.build_float32()
    ids = compared(subject).inputs.ids(2, 5)
    half = subject.training.half_precision_dtype
    before = {name: p.dtype for name, p in backbone.llm.named_parameters()}
    for told, context in (("outside", nullcontext()), ("under", torch.autocast("cpu", half))):
        with torch.no_grad(), context, refusal():
            backbone(
                inputs_embeds=embeddings_of(backbone, ids).to(half),
                attention_mask=torch.ones_like(ids),
            )
        changed = [n for n, p in backbone.llm.named_parameters() if p.dtype != before[n]]
        require(
            not changed,
            observed=f"after a call with `inputs_embeds` in {half}, {told} autocast, "
            f"{len(changed)} parameters have another dtype, the first is {changed[:1]}",
            expected="the dtypes of before: master weights that were rounded stay so",
            mend="cast what is handed in, if anything, and never the model",
        )


@requirement("FWD-15", MUST, profile="numerics")
def test_state_dicts_hold_what_is_frozen(subject: Subject) -> None:
    """A state dict holds every parameter, whatever is frozen, in either mode."""
    for built, backbone in built_both_ways(subject):
        layers = [] if subject.lacks("transformer_layer_cls") else decoder_layers(backbone)
        head = backbone.llm.get_output_embeddings()
        trained = {
            "everything": [],
            **({"all but the last layer": [layers[-1]]} if layers else {}),
            **({"all but the head": [head]} if head is not None else {}),
        }
        for mode, (frozen, kept) in product(("train", "eval"), trained.items()):
            getattr(backbone, mode)()
            backbone.requires_grad_(True)
            whole = list(backbone.state_dict())
            backbone.requires_grad_(False)
            for module in kept:
                module.requires_grad_(True)
            missing = sorted(set(whole) - set(backbone.state_dict()))
            require(
                not missing and bool(whole),
                observed=f"built for {built}, in {mode}(), with {frozen} frozen {len(missing)} "
                f"of {len(whole)} tensors are missing in the state dict, the first is "
                f"{missing[:1]}",
                expected="all of them: what was frozen is part of the checkpoint too",
                mend="leave `state_dict` to the module",
            )


_AT_ONCE: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"use_cache": True}, {"use_cache": False}),
    ({"use_cache": False}, {"use_cache": True}),
    ({"return_dict": False}, {}),
    ({}, {"output_hidden_states": True}),
)
"""What two threads of a server ask for at once: one decodes, the other scores."""


@requirement("FWD-15", MUST, profile="numerics")
def test_two_threads_get_their_own(subject: Subject) -> None:
    """Two threads that call at once get what each gets alone, and the configs are as before,
    wherever that is so of the library's own model."""
    together, judged = compared(subject), 0
    for built, backbone, control in together.pairs():
        for options in _AT_ONCE:
            if _difference_at_once(control, together.inputs, options) != "":
                continue
            difference = _difference_at_once(backbone, together.inputs, options)
            if difference is None:
                break
            judged += 1
            if difference:  # what the calls left behind is no matter of other clauses
                together.forget()
            require(
                not difference,
                observed=f"built for {built}, where one thread calls with {options[0]} and "
                f"another, meanwhile, with {options[1]}, {difference}",
                expected="what each of them gets alone",
                mend="hand arguments through, and write nothing into what calls share, not even "
                "for the length of a call",
            )
    if not judged:
        raise NotApplicable("no two calls are under way at once, or the library's own differ too")


def _difference_at_once(
    backbone: Any, inputs: Inputs, options: tuple[dict[str, Any], dict[str, Any]]
) -> str | None:
    """How two overlapping calls, or the configs after them, differ from the calls made one after
    the other; empty if they do not, None if the calls do not overlap."""
    backbone.eval()
    texts = (inputs.ids(2, 7), inputs.ids(1, 9, 1))
    calls = [
        functools.partial(_answer, backbone, ids, given, inputs.columns)
        for ids, given in zip(texts, options, strict=True)
    ]
    before, alone = _configs_of(backbone), [call() for call in calls]
    at_once = overlapping(backbone.llm.get_input_embeddings(), *calls)
    if at_once is None:
        return None
    for which, (found, wanted) in enumerate(zip(at_once, alone, strict=True), start=1):
        if isinstance(found, BaseException):
            return f"call {which} raises {type(found).__name__}: {found}"
        for name, value in wanted.items():
            if name != "the logits" and found[name] != value:
                return f"{name} of call {which} is {found[name]}, and {value} alone"
        if not relative_rms(found["the logits"], wanted["the logits"]) <= SEMANTICS:
            return f"call {which} returns other logits"
    after = _configs_of(backbone)
    changed = [key for key in before if before[key] != after.get(key)]
    return f"`{changed[0]}` of the config is {after.get(changed[0])} afterwards" if changed else ""


def _answer(
    backbone: Any, ids: torch.Tensor, given: dict[str, Any], columns: torch.Tensor
) -> dict[str, Any]:
    with torch.no_grad():
        output = backbone(input_ids=ids, **given)
    logits = output.logits if hasattr(output, "logits") else output[0]
    return {
        "the class": type(output).__name__,
        "the logits": logits[..., columns],
        "whether there is a cache": getattr(output, "past_key_values", None) is not None,
        "the number of hidden states": len(getattr(output, "hidden_states", None) or ()),
    }


def _configs_of(backbone: Any) -> dict[str, Any]:
    return {
        **plain(getattr(backbone.llm, "config", None)),
        **generation_traits(getattr(backbone.llm, "generation_config", None)),
    }


@requirement("FWD-15", MUST, profile="numerics")
def test_modes_are_the_hosts(subject: Subject) -> None:
    """With `llm` in one mode inside a backbone in the other, as whoever trains a projector beside
    a language model without dropout has it, a call leaves every module in its mode, and `llm`
    computes as in its own."""
    together = compared(subject)
    ids, columns = together.inputs.ids(2, 9), together.inputs.columns

    def logits(backbone: Any) -> torch.Tensor:
        torch.manual_seed(subject.seed)
        with torch.no_grad():
            return logits_of(backbone(input_ids=ids))[..., columns]

    for built, backbone, _ in together.pairs():
        for mode, other in (("train", "eval"), ("eval", "train")):
            state = f"built for {built}, with the backbone in {mode}() and `llm` in {other}()"
            try:
                with torch.random.fork_rng(devices=[]):
                    getattr(backbone, other)()
                    expected = logits(backbone)
                    getattr(backbone, mode)()
                    getattr(backbone.llm, other)()
                    before = {name: module.training for name, module in backbone.named_modules()}
                    observed = logits(backbone)
                changed = [
                    name
                    for name, module in backbone.named_modules()
                    if module.training != before.get(name, module.training)
                ]
            finally:
                backbone.eval()
            require(
                not changed,
                observed=f"{state}, a call changes the mode of {len(changed)} modules, the first "
                f"is `{changed[0] if changed else ''}`",
                expected="every module in the mode in which its host set it",
                mend="leave `train()` and `eval()` to the host",
            )
            error = relative_rms(observed, expected)
            require(
                error <= SEMANTICS,
                observed=f"{state}, the logits are off by a relative RMS of {error:.2g} from those "
                f"of a backbone in {other}()",
                expected="the same: dropout follows the modules that have it",
                mend="go by `self.llm.training`, not by `self.training`",
            )


@requirement("FWD-15", MUST, profile="numerics")
def test_what_was_frozen_is_trained_again(subject: Subject) -> None:
    """What a host froze is listed among the parameters, and can be trained again."""
    for built, backbone in built_both_ways(subject):
        listed = dict(backbone.named_parameters())
        trained = [name for name, parameter in listed.items() if parameter.requires_grad]
        backbone.requires_grad_(False)
        names = {name for name, _ in backbone.named_parameters()}
        held = {id(parameter) for parameter in backbone.parameters()}
        hidden = [n for n, one in listed.items() if n not in names or id(one) not in held]
        backbone.requires_grad_(True)
        frozen = [name for name in trained if not listed[name].requires_grad]
        require(
            not frozen,
            observed=f"built for {built}, after requires_grad_(False) and requires_grad_(True) "
            f"{len(frozen)} of {len(trained)} parameters stay frozen, the first is {frozen[:1]}",
            expected="all of them trained again: the next stage of a training unfreezes them",
            mend="leave `requires_grad_`, `parameters` and `named_parameters` to the module",
        )
        require(
            not hidden,
            observed=f"built for {built}, with everything frozen {len(hidden)} of {len(listed)} "
            f"parameters are not listed, the first is {hidden[:1]}",
            expected="all of them: a host that counts, moves or unfreezes them goes by the list",
            mend="leave `parameters` and `named_parameters` to the module",
        )


@requirement("FWD-15", MUST, profile="numerics")
def test_a_host_saves_and_loads_the_backbone(subject: Subject) -> None:
    """The state dict of a host that holds the backbone has every tensor of it, under the name by
    which the host holds it, and loads into the backbone."""
    for built, backbone in built_both_ways(subject):
        host = torch.nn.ModuleDict({"vlm": torch.nn.ModuleDict({"backbone": backbone})})
        own, whole = backbone.state_dict(), host.state_dict()
        missing = [name for name in own if f"vlm.backbone.{name}" not in whole]
        require(
            not missing and len(whole) == len(own),
            observed=f"built for {built}, the state dict of a host that holds the backbone as "
            f"`vlm.backbone` has {len(whole)} tensors, and lacks {len(missing)} of the backbone's "
            f"{len(own)}" + (f", the first is `vlm.backbone.{missing[0]}`" if missing else ""),
            expected="all of them, under `vlm.backbone.`: what a host saves is the whole model",
            mend="leave `state_dict` to the module, or hand `destination` and `prefix` on",
        )
        trained = {
            name: 1.01 * tensor if tensor.is_floating_point() else tensor
            for name, tensor in whole.items()
        }
        with refusal() as refused:
            host.load_state_dict(trained)
        now = backbone.state_dict()
        other = [
            name for name in own if not torch.equal(now[name], trained[f"vlm.backbone.{name}"])
        ]
        require(
            not refused and not other,
            observed=f"built for {built}, a host's load_state_dict "
            + (
                f"raised {quoted(str(refused[0]))}"
                if refused
                else f"left {len(other)} tensors of the backbone as they were, the first is "
                f"{other[:1]}"
            ),
            expected="what was loaded: it came out of the host's own state dict",
            mend="leave `_load_from_state_dict` to the module, or go by the `prefix` it is given",
        )


@requirement("FWD-15", MUST, profile="numerics")
def test_the_model_in_place_is_run(subject: Subject) -> None:
    """A model that a host puts in the place of `llm`, as it does to wrap it in adapters, is the one
    that runs."""
    together = compared(subject)
    ids, columns = together.inputs.ids(2, 9), together.inputs.columns
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for build, form in product(("training", "inference"), ("ids", "embeddings")):
        backbone = together.backbone(build)
        # Behind a property, or an adapter's path, nothing can be put in its place.
        if backbone is None or ("llm", backbone.llm) not in backbone.named_children():
            continue
        # What the place should give is what the backbone gives with these weights.
        with _other_weights(backbone.llm), torch.no_grad():
            alone = backbone.llm(**call).logits[..., columns]
            wanted = backbone(**_in_form(form, call, backbone)).logits[..., columns]
        with refusal() as refused, torch.no_grad():
            other = copy.deepcopy(backbone.llm)
            _grow(other)
            copied = other(**call).logits[..., columns]
        # A copy that is none, or hangs on the first model, says nothing of the backbone.
        if refused or relative_rms(copied, alone) > SEMANTICS:
            continue
        with _in_place_of_llm(backbone, other) as taken, refusal() as refused, torch.no_grad():
            if not taken:
                continue
            found = backbone(**_in_form(form, call, backbone)).logits[..., columns]
        error = float("inf") if refused else relative_rms(found, wanted)
        within(
            "logits of the model in place",
            error,
            SEMANTICS,
            observed=f"built with {_BUILDS.get(build, 'the defaults')}, with a copy of other "
            f"weights in the place of `llm`, forward with {form} "
            + (
                f"raised {quoted(str(refused[0]))}"
                if refused
                else f"is off by a relative RMS of {error:.2g}"
            ),
            expected="what these weights give: `backbone.llm = get_peft_model(backbone.llm)` is "
            "how hosts add adapters",
            mend="look `self.llm` up in each call, and keep no other reference to it or its parts",
            conditions=conditions(wanted.dtype, wanted.device),
        )


def _grow(llm: Any) -> None:
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.mul_(1.1)


@contextmanager
def _other_weights(llm: Any) -> Iterator[None]:
    """The model with other weights while the body runs."""
    own = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    _grow(llm)
    try:
        yield
    finally:
        llm.load_state_dict(own)


@contextmanager
def _in_place_of_llm(backbone: Any, other: Any) -> Iterator[bool]:
    """Put another model in the place of `llm` while the body runs, and say whether it can be."""
    own = backbone.llm
    with refusal():
        backbone.llm = other
    taken = backbone.llm is other
    try:
        yield taken
    finally:
        if taken:
            backbone.llm = own


@requirement("FWD-15", MUST, profile="numerics")
def test_outputs_are_let_go(subject: Subject) -> None:
    """What a call returned is freed when the caller drops it, and so is the graph behind it."""
    together = compared(subject)
    for build in ("training", "inference"):
        backbone = together.backbone(build)
        if backbone is None:
            continue
        for training in (False, True):
            ids = together.inputs.ids(2, 9)
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if training:
                given["labels"] = ids
            backbone.train(training)
            with torch.set_grad_enabled(training):
                output = backbone(**given)
            logits, loss = output.logits, getattr(output, "loss", None)
            memory: Any = StorageWeakRef(logits.untyped_storage())  # type: ignore[no-untyped-call]
            kept = {
                "the logits": memory.expired,
                "the graph of the logits": _graph_gone(logits),
                "the graph of the loss": _graph_gone(loss),
            }
            del output, logits, loss
            backbone.eval()
            if not all(gone() for gone in kept.values()):
                gc.collect()  # objects that refer to each other wait for the collector
            still = [name for name, gone in kept.items() if not gone()]
            require(
                not still,
                observed=f"{' and '.join(still)} of a call stay in memory after the caller has "
                "dropped them" + (", in train() with labels" if training else ""),
                expected="nothing kept from one call to the next",
                mend="store no output, hidden state or graph on the backbone; detach what is kept "
                "of a loss",
            )


class _Marker:
    """A hook that does nothing, and lives as long as the node of the graph that it hangs on."""

    def __call__(self, *_: Any) -> None:
        return None


def _graph_gone(tensor: torch.Tensor | None) -> Callable[[], bool]:
    """Says later whether the graph that ends in `tensor` is gone; there may be none."""
    if tensor is None or tensor.grad_fn is None:
        return lambda: True
    marker = _Marker()
    tensor.grad_fn.register_hook(marker)
    left = weakref.ref(marker)
    return lambda: left() is None


@requirement("FWD-15", MUST, profile="numerics")
def test_a_backbone_is_let_go(subject: Subject) -> None:
    """A backbone that nobody holds is freed, with its weights: one that was trained, and one that
    has generated."""
    ids = compared(subject).inputs.ids(2, 4)
    mask = torch.ones_like(ids)
    for build in ("training", "inference"):
        if build == "training":
            backbone = subject.build()
            if not subject.lacks("enable_gradient_checkpointing"):
                backbone.enable_gradient_checkpointing()
            backbone.train()
            backbone(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        else:
            backbone = subject.build_for_inference()
            backbone.llm.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=2, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        backbone.get_tokenizer()
        if not subject.lacks("get_fsdp_wrapping_policy"):
            backbone.get_fsdp_wrapping_policy()
        weights: Any = StorageWeakRef(
            backbone.llm.get_input_embeddings().weight.untyped_storage()  # type: ignore[no-untyped-call]
        )
        del backbone
        gc.collect()
        require(
            weights.expired(),
            observed=f"built for {build} and used, a backbone's weights stay in memory after the "
            "last reference to it is gone",
            expected="memory that is free again: whoever builds a second one has room for it",
            mend="keep no instance on the class, in the module or by `functools.cache` on a method",
        )


@requirement("FWD-15", MUST, profile="numerics")
def test_a_state_dict_that_does_not_fit_is_refused(subject: Subject) -> None:
    """What is loaded is what the backbone then holds, and a state dict whose keys or shapes are
    not its own is refused, as modules do."""
    together = compared(subject)
    for build in ("training", "inference"):
        backbone = together.backbone(build)
        if backbone is None:
            continue
        own = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        name = max(own, key=lambda name: own[name].numel())
        trained = {key: 1.01 * tensor for key, tensor in own.items()}
        backbone.load_state_dict(trained)
        now = backbone.state_dict()
        changed = [key for key, tensor in trained.items() if not torch.equal(now[key], tensor)]
        backbone.load_state_dict(own)
        require(
            not changed,
            observed=f"after load_state_dict {len(changed)} tensors have other values than were "
            f"loaded, the first is `{changed[0] if changed else ''}`",
            expected="what was loaded: new rows too have been trained by then",
            mend="fill new rows once, while the model is built",
        )
        prefixed = {f"vlm.{key}": tensor for key, tensor in own.items()}
        for told, state in (
            ("of which no key is the backbone's, and loaded nothing", prefixed),
            (f"in which `{name}` has a row less than the backbone's", own | {name: own[name][:-1]}),
            (f"that lacks `{name}`", {key: own[key] for key in own if key != name}),
        ):
            with refusal() as refused:
                backbone.load_state_dict(state)
            backbone.load_state_dict(own)
            require(
                bool(refused),
                observed=f"load_state_dict took a state dict {told}",
                expected="an error that names what does not fit, as from every module",
                mend="leave `strict` to the caller, and leave out nothing",
            )
        host = torch.nn.ModuleDict({"backbone": backbone, "projector": torch.nn.Linear(2, 2)})
        with refusal() as refused:
            host.load_state_dict({f"backbone.{key}": tensor for key, tensor in own.items()})
        require(
            bool(refused),
            observed="a host's load_state_dict took a state dict without the host's own projector",
            expected="an error that names what is missing, as from every module",
            mend="take nothing off the list of missing keys, which the host's are on too",
        )


@requirement("FWD-15", MUST, profile="numerics")
def test_a_call_that_raises_leaves_no_trace(subject: Subject) -> None:
    """A call that raises leaves configs, modes, what is trained, and what is computed next as they
    were: hosts catch the error, and go on with another batch."""
    together = compared(subject)
    for build in ("training", "inference"):
        backbone = together.backbone(build)
        if backbone is None:
            continue
        for training in (True, False):
            backbone.train(training)
            before = _settings_of(backbone)
            for told, call in _bad_calls(backbone, together.inputs).items():
                with refusal(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    call()
                after = _settings_of(backbone)
                changed = sorted(name for name in before if after[name] != before[name])
                require(
                    not changed,
                    observed=f"built with {_BUILDS.get(build, 'the defaults')}, in "
                    f"{'train' if training else 'eval'}(), a call with {told} changed "
                    f"{', '.join(changed)}",
                    expected="what was set before the call",
                    mend="put back what a call sets in a `finally`, or set nothing",
                )
        backbone.eval()
        wanted = probe(together.control(build), together.inputs)
        error = relative_rms(probe(backbone, together.inputs), wanted)
        within(
            "logits after calls that raised",
            error,
            SEMANTICS,
            observed=f"after calls that raised the logits differ by a relative RMS of {error:.2g}",
            expected="those of the library's own model, to which nothing happened",
            mend="keep nothing of a call",
            conditions=conditions(wanted.dtype, wanted.device),
        )


def _bad_calls(backbone: Any, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Calls that a sound backbone cannot answer, and one that runs out of memory in its last
    layer."""
    ids = inputs.ids(2, 9)
    mask = torch.ones_like(ids)

    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    def interrupted() -> None:
        layers = decoder_layers(backbone)
        if not layers:
            return
        hook = layers[-1].register_forward_pre_hook(out_of_memory)
        try:
            backbone(input_ids=ids, attention_mask=mask, labels=ids)
        finally:
            hook.remove()

    width = int(backbone.llm.get_input_embeddings().weight.shape[1])
    return {
        "labels of another length": lambda: backbone(
            input_ids=ids, attention_mask=mask, labels=ids[:, :4]
        ),
        "embeddings of another width": lambda: backbone(
            inputs_embeds=torch.zeros(2, 9, width + 1), attention_mask=mask
        ),
        "an error in the last layer": interrupted,
    }


def _settings_of(backbone: Any) -> dict[str, Any]:
    """What a call may set, by what it is called."""
    llm = backbone.llm
    generation = getattr(llm, "generation_config", None)
    return {
        "the config": llm.config.to_dict(),
        "the generation config": generation and generation.to_dict(),
        "the mode of modules": [module.training for module in backbone.modules()],
        "what is trained": [parameter.requires_grad for parameter in llm.parameters()],
        "the dtype of parameters": [parameter.dtype for parameter in llm.parameters()],
        "whether gradients are recorded": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_cpu_enabled(),
        "the default dtype": torch.get_default_dtype(),
    }


@requirement("FWD-15", MUST, profile="numerics")
def test_two_backbones_share_nothing(subject: Subject) -> None:
    """Two backbones of one process share no tensor, tokenizer or config, with other arguments or
    with the same."""
    together = compared(subject)
    without_token = together.backbone("no token")
    if without_token is not None:
        _require_apart(together.backbone("training"), without_token)
    # Built with the arguments of the shared ones.
    for built, other in built_both_ways(subject):
        _require_apart(subject.inference if built == "inference" else subject.training, other)


def _require_apart(one: Any, other: Any) -> None:
    storages = {
        tensor.untyped_storage().data_ptr(): name for name, tensor in _tensors_of(one).items()
    }
    shared = [
        name
        for name, tensor in _tensors_of(other).items()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in storages
    ]
    require(
        not shared,
        observed=f"two backbones share {len(shared)} tensors, the first is {shared[:1]}: training "
        "one trains the other",
        expected="tensors of its own in each",
        mend="cache no model or tensor on the class or in the module",
    )
    for name, (ours, others) in {
        "tokenizer": (one.get_tokenizer(), other.get_tokenizer()),
        "config": (one.llm.config, other.llm.config),
        "generation config": tuple(
            getattr(backbone.llm, "generation_config", None) for backbone in (one, other)
        ),
    }.items():
        require(
            ours is None or ours is not others,
            observed=f"two backbones share one {name}: what is set or added for one changes the "
            "other",
            expected="one of its own in each",
            mend=f"load a {name} for each backbone, or copy the one that is kept",
        )


@requirement(
    "GEN-05", MUST, profile="numerics", needs=["FWD-14", "GEN-04", "CON-13"],
    uses=["forward"],
)  # fmt: skip
def test_generation_in_any_state(subject: Subject) -> None:
    """However it is built, generation emits what the library's own model emits: from prompts alone
    and left-padded in a batch, as ids and as embeddings, in `eval()` and after `train()`, over 70
    tokens, and again; built for inference it computes no more positions for it."""
    together = _that_generates(subject)

    @functools.cache
    def by_control(cached: bool, *asked: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
        control = together.control("inference" if cached else "training")
        return _generated(control, together.inputs, *asked)

    for build in ("training", "inference", "flash", "no token", "all at once"):
        backbone = together.backbone(build)
        if backbone is None:
            continue
        cached = is_for_inference(build)
        # Many tokens, and some behind as many as `llm_max_length` allows a text to have.
        far = [(1, 5, 70, "ids"), (1, LLM_MAX_LENGTH - 2, 5, "ids")]
        for batch, length, new, form in (
            *(far if build in ("training", "inference") else ()),
            (3, 12, 4, "ids"), (3, 12, 4, "ids"), (3, 12, 4, "embeddings"),
        ):  # fmt: skip
            try:
                wanted, expected, enough = by_control(cached, batch, length, new, form)
            except Exception as refused:
                if form == "ids" or is_slip_of_ours(refused):
                    raise
                continue  # what the library cannot do is not asked of the subject
            emitted, observed, positions = _generated(
                backbone, together.inputs, batch, length, new, form
            )
            error = relative_rms(observed, expected)
            within(
                "generation",
                error,
                SEMANTICS,
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, {new} tokens after "
                f"{batch} prompt(s) of up to {length} tokens, given as {form}, are drawn from "
                f"logits that differ by a relative RMS of {error:.2g}",
                expected="what the library's own model generates from the same checkpoint",
                mend="leave `generate` to the library, in every state",
                conditions=conditions(observed.dtype, observed.device),
            )
            require(
                torch.equal(emitted, wanted),
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, generation emits "
                f"{emitted.tolist()}",
                expected=f"{wanted.tolist()}, which the library's own model emits by the same "
                "logits",
                mend="leave `generate` to the library, in every state",
            )
            require(
                positions <= enough or not cached,
                observed=f"built with {_BUILDS[build] if cached else ''}, generation of {new} "
                f"tokens after {batch} prompt(s) of up to {length} looks up {positions} ids",
                expected=f"{enough}, as with a cache: without one each token costs a whole pass",
                mend="leave `use_cache` on in the generation config, in inference mode",
            )


@requirement("GEN-05", MUST, profile="numerics")
def test_beams_and_configs_are_the_librarys(subject: Subject) -> None:
    """Beams, several sequences a prompt, and a generation config that the caller hands over give
    what the library's own model gives."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    together = _that_generates(subject)
    ids, mask = _prompts(together.inputs, 2, 8)
    filling = int(together.inputs.ordinary[0])
    greedy = {"do_sample": False, "pad_token_id": filling}
    asked: dict[str, dict[str, Any]] = {
        "num_beams=2 and num_return_sequences=2": {
            **greedy, "max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2,
        },
        # Of one token, as rounding moves what is drawn of several.
        "do_sample=True, top_k=1 and num_return_sequences=2": {
            "do_sample": True, "pad_token_id": filling, "max_new_tokens": 4, "top_k": 1,
            "num_return_sequences": 2,
        },
        "a generation_config for 3 tokens": {
            "generation_config": GenerationConfig(**greedy, max_new_tokens=3)
        },
        "the caller's own stopping_criteria": {
            **greedy, "max_new_tokens": 6,
            "stopping_criteria": StoppingCriteriaList([_behind(ids.shape[1] + 2)]),
        },
        "the caller's own logits_processor": {
            **greedy, "max_new_tokens": 4,
            "logits_processor": LogitsProcessorList([lambda _, scores: scores.roll(1, -1)]),
        },
    }  # fmt: skip
    for build, backbone, control in together.pairs():
        for told, options in asked.items():
            emitted = []
            for one in (control, backbone):
                llm: Any = one.llm
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    out = llm.generate(input_ids=ids, attention_mask=mask, **copy.deepcopy(options))
                emitted.append(out[:, ids.shape[1] :].tolist())
            wanted, found = emitted
            require(
                found == wanted,
                observed=f"built with {_BUILDS.get(build, 'the defaults')}, generation with {told} "
                f"emits {found}",
                expected=f"{wanted}, which the library's own model emits",
                mend="leave `generate` to the library, with every argument",
            )


def _that_generates(subject: Subject) -> Compared:
    if not hasattr(subject.training.llm, "generate"):
        raise NotApplicable(f"a {type(subject.training.llm).__name__} does not generate")
    return compared(subject)


def _behind(length: int) -> Callable[..., torch.Tensor]:
    """A stop of a host's own: all rows end at this length, prompt and all."""

    def reached(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= length)

    return reached


@requirement("GEN-05", MUST, profile="numerics")
def test_samples_differ(subject: Subject) -> None:
    """Two samples that are drawn one after the other differ, as those of the library's own model
    do."""
    together = _that_generates(subject)
    ids, mask = _prompts(together.inputs, 1, 6)
    for build, backbone, control in together.pairs():
        alike = []
        for one in (control, backbone):
            llm: Any = one.llm
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(subject.seed)
                samples = [
                    llm.generate(
                        input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
                        temperature=1.0, max_new_tokens=12,
                        pad_token_id=int(together.inputs.ordinary[0]),
                    ).tolist()
                    for _ in range(2)
                ]  # fmt: skip
            alike.append(samples[0] == samples[1])
        require(
            alike[0] or not alike[1],
            observed=f"built with {_BUILDS.get(build, 'the defaults')}, two samples of twelve "
            "tokens of one prompt, drawn one after the other, are the same",
            expected="two samples: those of the library's own model differ",
            mend="seed nothing inside `generate`; whoever wants the same sample twice seeds before",
        )


@requirement("GEN-05", MUST, profile="numerics")
def test_copies_generate_by_themselves(subject: Subject) -> None:
    """A copy whose weights have changed since generates by its own."""
    together = _that_generates(subject)
    ids, mask = _prompts(together.inputs, 2, 8)
    for build, backbone, control in together.pairs():
        emitted = []
        for one in (control, backbone):
            with refusal() as refused:  # CON-16 judges copying
                copied = copy.deepcopy(one)
            if refused:
                break
            llm: Any = copied.llm
            head = llm.get_output_embeddings().weight
            with torch.no_grad():
                head.copy_(head.roll(1, 0))
                out = llm.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=3,
                    min_new_tokens=3, pad_token_id=int(together.inputs.ordinary[0]),
                )  # fmt: skip
            emitted.append(out[:, ids.shape[1] :].tolist())
        if len(emitted) < 2:
            continue
        require(
            emitted[0] == emitted[1],
            observed=f"built with {_BUILDS.get(build, 'the defaults')}, a copy whose head was "
            f"changed emits {emitted[1]}",
            expected=f"{emitted[0]}, which a copy of the library's own model emits with that head",
            mend="bind nothing to one instance: a closure in the place of a method stays that "
            "instance's in every copy",
        )


@requirement("GEN-02", MUST, profile="numerics", needs=["GEN-05"], uses=["forward"])
def test_generation_stops_at_every_eos(subject: Subject) -> None:
    """Generation stops at every eos id of the generation config, each row of a batch by itself, and
    nothing but filling follows."""
    together = compared(subject)
    for build, backbone, control in together.pairs():
        freely, _, _ = _generated(control, together.inputs, 3, 12, 8, "ids")
        # Tokens that two of the rows emit in time, so that they end apart, and the third does not.
        stops = [int(freely[0, 1]), int(freely[1, 4])]
        wanted, emitted = (
            _until_stopped(one, together.inputs, stops) for one in (control, backbone)
        )
        require(
            emitted == wanted,
            observed=f"built with {_BUILDS.get(build, 'the defaults')}, with {stops} among the eos "
            f"ids of the generation config the rows of a batch emit {emitted}",
            expected=f"{wanted}, which the library's own model emits",
            mend="let `generate` read the eos ids of the generation config, and stop row by row",
        )


def _until_stopped(backbone: Any, inputs: Inputs, stops: list[int]) -> list[list[int]]:
    """What each of three rows emits up to its first stop, at most eight tokens, and what follows
    if it is more than filling."""
    config = backbone.llm.generation_config
    kept = config.eos_token_id
    published = kept if isinstance(kept, list) else [kept] if kept is not None else []
    ids, mask = _prompts(inputs, 3, 12)
    filling = int(inputs.ordinary[0])
    try:
        config.eos_token_id = [*published, *stops]
        with torch.no_grad():
            out = backbone.llm.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False,
                pad_token_id=filling,
            )  # fmt: skip
    finally:
        config.eos_token_id = kept
    rows = []
    for row in out[:, ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in (*published, *stops)), len(row))
        rest = [token for token in row[end + 1 :] if token != filling]
        rows.append([*row[: end + 1], *rest])
    return rows


def _prompts(inputs: Inputs, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts: ids and mask, (batch, length)."""
    ids = inputs.ids(batch, length)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, : row * length // (batch + 1)] = 0
    return ids, mask


def _generated(
    backbone: Any, inputs: Inputs, batch: int, length: int, new: int, form: str
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The emitted ids, (batch, new), the logits they were chosen by, (new, batch, ids), and how
    many ids were looked up meanwhile."""
    ids, mask = _prompts(inputs, batch, length)
    backbone.train()
    backbone.eval()
    looked_up: list[int] = []
    with torch.no_grad(), _counted_ids(backbone, looked_up):
        prompt = (
            {"input_ids": ids} if form == "ids"
            else {"inputs_embeds": embeddings_of(backbone, ids)}
        )  # fmt: skip
        out = backbone.llm.generate(
            **prompt, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
            do_sample=False, return_dict_in_generate=True, output_logits=True,
            pad_token_id=int(inputs.ordinary[0]),
        )  # fmt: skip
    # Of embeddings only what is new comes back.
    logits = torch.stack(out.logits)[..., inputs.columns]
    return out.sequences[:, -new:], logits, sum(looked_up)


@contextmanager
def _counted_ids(backbone: Any, counts: list[int]) -> Iterator[None]:
    """Note how many ids each lookup of the input embedding is given while the body runs."""
    hook = backbone.llm.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: counts.append(given[0].numel() if given else 0)
    )
    try:
        yield
    finally:
        hook.remove()


def _live(together: Compared, steps: list[str]) -> None:
    """Take the steps on subject and control alike, comparing after each. Dropout is off: FWD-14
    compares what is drawn."""
    backbone, control = together.backbone("training"), together.control("training")
    try:
        with without_dropout(backbone), without_dropout(control):
            _live_alike(together, backbone, control, steps)
    except Exception:
        together.forget()  # what this history left is no fault of what other clauses look at
        raise


def _live_alike(together: Compared, backbone: Any, control: Control, steps: list[str]) -> None:
    kept = [
        {name: t.clone() for name, t in one.state_dict().items()} for one in (backbone, control)
    ]
    taken: list[str] = []
    try:
        for index, step in enumerate(steps):
            answers: list[torch.Tensor] = []
            for one in (control, backbone):
                torch.manual_seed(index)
                try:
                    take(one, step, together.inputs, index)
                    answers.append(probe(one, together.inputs))
                except Exception as raised:
                    if one is control:
                        break  # the library takes no such step: it is not asked of the subject
                    raise ClauseFailure(
                        observed=f"after {', '.join([*taken, step])} it raised "
                        f"{type(raised).__name__}: {quoted(str(raised))}",
                        expected="what the library's own model computes after the same",
                        mend="keep nothing between calls",
                    ) from raised
            if not answers:
                continue
            taken.append(step)
            error = relative_rms(answers[1], answers[0])
            within(
                "history",
                error,
                10 * SEMANTICS,
                observed=f"after {', '.join(taken)}, the logits differ from the control's by a "
                f"relative RMS of {error:.2g}",
                expected="what the library's own model computes after the same",
                mend="keep nothing between calls: masks, caches, copies of weights, modes",
                conditions=conditions(answers[1].dtype, answers[1].device),
            )
        if not taken:
            raise NotApplicable(f"the library takes none of the steps {', '.join(steps)}")
    finally:
        for one, state in zip((backbone, control), kept, strict=True):
            one.load_state_dict(state)
            one.llm.zero_grad(set_to_none=True)
            one.eval()


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


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def _tensors_of(backbone: Any) -> dict[str, torch.Tensor]:
    return {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
