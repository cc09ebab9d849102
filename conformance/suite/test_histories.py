"""Forward: any history, beside the control: nothing that happened to a backbone shows in what it
computes."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from conformance.assertions import (
    ClauseFailure,
    NotApplicable,
    quoted,
    refusal,
    require,
    within,
)
from conformance.catalogue import MUST, requirement
from conformance.control import Control, Inputs, embeddings_of
from conformance.control.calls import copied_with_its_tokenizer, without_dropout
from conformance.control.life import STEPS, probe, take
from conformance.control.overlap import overlapping
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS, conditions
from conformance.parity.library import text_config
from conformance.subject.subject import Subject
from conformance.suite.identity import configs_of
from conformance.suite.models import (
    built_both_ways,
    decoder_layers,
    in_place_of_llm,
    logits_of,
)
from conformance.suite.product import (
    BUILDS,
    Compared,
    compared,
)
from conformance.suite.properties import for_all

_LIVES = (
    ("forward", "masked", "generate", "forward", "step", "masked", "reload", "decode far",
     "far positions", "patches", "train", "step", "eval", "forward"),
)  # fmt: skip
"""Histories that are tried before any is drawn."""


@requirement("FWD-15", MUST, profile="numerics", needs=["FWD-14"], uses=["forward"])
def test_edge_histories_leave_no_trace(subject: Subject) -> None:
    """After any history (calls, generation, steps of training, a state dict out and in, modes,
    which a host may mix) the backbone computes what its control computes after the same, and two
    calls at once get what each gets alone; no output is kept, a state dict holds what is frozen,
    one that does not fit is refused, strict or not, loading keeps dtypes, `.to` moves and casts,
    which can be undone, and no two backbones share tensors, tokenizer or configs."""
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
                observed=f"built with {BUILDS.get(build, 'the defaults')}, "
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
                observed=f"built with {BUILDS.get(build, 'the defaults')}, with {form}, behind "
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
                observed=f"built with {BUILDS.get(build, 'the defaults')}, with two caches "
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
def test_a_copied_cache_is_another(subject: Subject) -> None:
    """A cache that was copied is continued by itself: a shared beginning is copied for each
    question."""
    together = compared(subject)
    for build, backbone, control in together.pairs():
        with torch.no_grad():
            with refusal() as refused:
                wanted = _behind_copies(control, together.inputs)
            if refused:  # what the library cannot do is not asked of the subject
                raise NotApplicable("the library's own cache cannot be copied")
            found = _behind_copies(backbone, together.inputs)
        error = relative_rms(found, wanted)
        within(
            "logits behind a copied cache",
            error,
            SEMANTICS,
            observed=f"built with {BUILDS.get(build, 'the defaults')}, the second of two questions "
            f"behind copies of one cache has logits off by a relative RMS of {error:.2g}",
            expected="those behind the beginning alone",
            mend="return the library's own cache, which can be copied",
            conditions=conditions(found.dtype, found.device),
        )


def _behind_copies(backbone: Any, inputs: Inputs) -> torch.Tensor:
    begun = backbone(input_ids=inputs.ids(1, 6), use_cache=True).past_key_values
    for offset in (1, 2):
        output = backbone(
            input_ids=inputs.ids(1, 3, offset), past_key_values=copy.deepcopy(begun),
            attention_mask=torch.ones(1, 9, dtype=torch.long), use_cache=True,
        )  # fmt: skip
    logits: torch.Tensor = output.logits[..., inputs.columns]
    return logits


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
                observed=f"built with {BUILDS.get(build, 'the defaults')}, behind a cache that is "
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
    before, alone = configs_of(backbone), [call() for call in calls]
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
    after = configs_of(backbone)
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
        copied = [
            name
            for name, parameter in backbone.named_parameters()
            if name in own and own[name].data_ptr() != parameter.data_ptr()
        ]
        require(
            not copied,
            observed=f"built for {built}, {len(copied)} of {len(own)} tensors of the state dict "
            f"are copies, the first is {copied[:1]}",
            expected="the tensors themselves: an average of weights is copied back into them, and "
            "a large model fits into memory once",
            mend="leave `state_dict` to the module; whoever writes in the background copies",
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
        with in_place_of_llm(backbone, other) as taken, refusal() as refused, torch.no_grad():
            if not taken:
                continue
            found = backbone(**_in_form(form, call, backbone)).logits[..., columns]
        error = float("inf") if refused else relative_rms(found, wanted)
        within(
            "logits of the model in place",
            error,
            SEMANTICS,
            observed=f"built with {BUILDS.get(build, 'the defaults')}, with a copy of other "
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
        _require_own_dtypes(backbone, own, together.half)
        cut = own | {name: own[name][:-1]}
        less = f"in which `{name}` has a row less than the backbone's"
        prefixed = {f"vlm.{key}": tensor for key, tensor in own.items()}
        for told, state, strict in (
            ("of which no key is the backbone's, and loaded nothing", prefixed, True),
            (less, cut, True),
            (f"that lacks `{name}`", {key: own[key] for key in own if key != name}, True),
            # What is not strict passes over names alone.
            (f"with `strict=False` {less}", cut, False),
        ):
            with refusal() as refused:
                backbone.load_state_dict(state, **({} if strict else {"strict": False}))
            backbone.load_state_dict(own)
            require(
                bool(refused),
                observed=f"load_state_dict took a state dict {told}",
                expected="an error that names what does not fit, as from every module",
                mend="leave `strict` to the caller, and leave out nothing",
            )
        partial = {key: own[key] for key in own if key != name} | {"of_another": own[name]}
        result: Any = None
        with refusal() as refused:
            result = backbone.load_state_dict(partial, strict=False)
        missing = list(getattr(result, "missing_keys", ()))
        unexpected = list(getattr(result, "unexpected_keys", ()))
        require(
            name in missing and "of_another" in unexpected,
            observed=f"load_state_dict(strict=False) without `{name}` and with a key too many "
            + (f"raised {refused[0]!r}" if refused else f"returned {quoted(result)}"),
            expected="the missing and the unexpected keys, as from every module: scripts ask what "
            "a partial checkpoint lacks",
            mend="return what the module's own `load_state_dict` returns",
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


def _require_own_dtypes(backbone: Any, own: dict[str, torch.Tensor], half: torch.dtype) -> None:
    """A state dict in half precision is loaded into parameters that keep their dtype."""
    before = {name: p.dtype for name, p in backbone.named_parameters()}
    rounded = {
        name: tensor.to(half) if tensor.is_floating_point() else tensor
        for name, tensor in own.items()
    }
    with refusal():  # which whoever asks hears of
        backbone.load_state_dict(rounded)
    changed = [name for name, p in backbone.named_parameters() if p.dtype != before[name]]
    for name, parameter in backbone.named_parameters():
        parameter.data = parameter.data.to(before[name])
    backbone.load_state_dict(own)
    require(
        not changed,
        observed=f"after load_state_dict of tensors in {half}, {len(changed)} of {len(before)} "
        f"parameters are in another dtype than before, the first is {changed[:1]}",
        expected="the dtypes of before, as modules keep them: training goes on in float32 from "
        "what was exported in half precision",
        mend="cast what is loaded, and not the model",
    )


_CASTS: dict[str, tuple[Callable[[Any, torch.dtype], Any], Callable[[Any], Any]]] = {
    ".to(half) and .float()": (lambda one, half: one.to(half), lambda one: one.float()),
    ".bfloat16() or .half() and .to(float32)": (
        lambda one, half: one.bfloat16() if half == torch.bfloat16 else one.half(),
        lambda one: one.to(torch.float32),
    ),
    ".to(dtype=half) and .to(dtype=float32)": (
        lambda one, half: one.to(dtype=half), lambda one: one.to(dtype=torch.float32),
    ),
}  # fmt: skip


@requirement("FWD-15", MUST, profile="numerics")
def test_a_cast_can_be_undone(subject: Subject) -> None:
    """Cast to half precision and back, for a validation say, it computes what its rounded weights
    give, from ids and from embeddings."""
    together, judged = compared(subject), 0
    for told, (cast, back) in _CASTS.items():
        found = _off_after(together.backbone("training"), together, cast, back)
        if found is None or any(name not in found for name in ("ids", "embeddings")):
            continue  # not every class can be copied, or cast
        judged += 1
        if max(found.values()) <= SEMANTICS:
            continue
        # The library's buffers are rounded by a cast, too.
        theirs = _off_after(together.control("training"), together, cast, back) or {}
        for form, error in found.items():
            within(
                "logits after casts",
                error,
                max(SEMANTICS, 2 * theirs.get(form, 0.0)),
                observed=f"after {told} the logits of {form} are off by a relative RMS of "
                f"{error:.2g}",
                expected="those that the rounded weights give in float32",
                mend="ask a parameter for its dtype, and remember none",
            )
    if not judged:
        raise NotApplicable("it cannot be copied, or not be cast")


def _off_after(
    backbone: Any,
    together: Compared,
    cast: Callable[[Any, torch.dtype], Any],
    back: Callable[[Any], Any],
) -> dict[str, float] | None:
    """By form of input, how far a copy that was cast and cast back is off from one whose weights
    alone were rounded; None if there is none."""
    half, inputs, made = together.half, together.inputs, list[Any]()
    with refusal():
        made = [copied_with_its_tokenizer(backbone) for _ in range(2)]
        back(cast(made[0], half))
    if not made or {p.dtype for p in made[0].parameters()} != {torch.float32}:
        return None
    for parameter in made[1].parameters():
        parameter.data = parameter.data.to(half).float()
    ids, off = inputs.ids(2, 9), dict[str, float]()
    for form, given in (
        ("ids", {"input_ids": ids}),
        # Which half precision rounds, unlike rows that were rounded.
        ("embeddings", {"inputs_embeds": 1.003 * embeddings_of(backbone, ids).detach()}),
    ):
        with torch.no_grad(), refusal():
            found, wanted = (one(**given).logits[..., inputs.columns] for one in made)
            off[form] = relative_rms(found, wanted)
    return off


@requirement("FWD-15", MUST, profile="numerics")
def test_a_move_and_a_cast_are_one_call(subject: Subject) -> None:
    """`.to` takes a device and a dtype, together or alone, and does both."""
    half, meta = compared(subject).half, torch.device("meta")
    _, built = next(built_both_ways(subject))
    both = {"device": meta, "dtype": half}
    like = torch.empty(0, **both)
    can_be_moved = True
    for told, arguments, named, moved, cast in (
        (".to(device)", (meta,), {}, True, False),
        (f".to({half})", (half,), {}, False, True),
        (f".to(device, {half})", (meta, half), {}, True, True),
        (f".to(device=…, dtype={half})", (), both, True, True),
        (".to(another tensor)", (like,), {}, True, True),
    ):
        with refusal() as refused:  # not every class can be copied
            backbone = copied_with_its_tokenizer(built)
        if refused:
            _, backbone = next(built_both_ways(subject))
        with refusal() as refused:
            backbone.to(*arguments, **named)
        if refused and moved and not cast:
            can_be_moved = False  # a device without storage may be too much for code of one's own
        if refused and moved and not can_be_moved:
            continue
        require(
            not refused,
            observed=f"`{told}` raised {quoted(''.join(map(str, refused)))}",
            expected="all that modules take",
            mend="hand all arguments of `.to` on to the module's own",
        )
        left = [
            name
            for name, p in backbone.llm.named_parameters()
            if (moved and p.device != meta) or (cast and p.dtype != half)
        ]
        require(
            not left,
            observed=f"after `{told}` {len(left)} parameters are elsewhere or in another dtype, "
            f"the first is `{left[0] if left else ''}`",
            expected="all of them moved and cast, as modules do",
            mend="hand all arguments of `.to` on to the module's own",
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
                    observed=f"built with {BUILDS.get(build, 'the defaults')}, in "
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


def _tensors_of(backbone: Any) -> dict[str, torch.Tensor]:
    return {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
