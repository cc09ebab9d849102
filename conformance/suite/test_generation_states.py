"""Generation in any state, beside the control: greedy, sampled, by beams, with what hosts add."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from conformance.assertions import (
    NotApplicable,
    is_slip_of_ours,
    quoted,
    refusal,
    require,
    within,
)
from conformance.catalogue import MUST, requirement
from conformance.control import Inputs, embeddings_of, is_for_inference
from conformance.control.calls import copied_with_its_tokenizer
from conformance.control.overlap import overlapping
from conformance.control.states import LLM_MAX_LENGTH
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS, conditions
from conformance.subject.contract import eos_ids_of
from conformance.subject.subject import Subject
from conformance.suite.generating import left_padded, that_generates
from conformance.suite.identity import configs_of
from conformance.suite.product import BUILDS, compared


@requirement(
    "GEN-05", MUST, profile="numerics", needs=["FWD-14", "GEN-04", "CON-13"],
    uses=["forward"],
)  # fmt: skip
def test_generation_in_any_state(subject: Subject) -> None:
    """However it is built, generation emits what the library's own model emits: from prompts alone
    and left-padded in a batch, as ids and as embeddings, in `eval()` and after `train()`, over 70
    tokens, behind a cache that holds the beginning, and again; built for inference it computes no
    more positions for it."""
    together = that_generates(subject)

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
                observed=f"built with {BUILDS.get(build, 'the defaults')}, {new} tokens after "
                f"{batch} prompt(s) of up to {length} tokens, given as {form}, are drawn from "
                f"logits that differ by a relative RMS of {error:.2g}",
                expected="what the library's own model generates from the same checkpoint",
                mend="leave `generate` to the library, in every state",
                conditions=conditions(observed.dtype, observed.device),
            )
            require(
                torch.equal(emitted, wanted),
                observed=f"built with {BUILDS.get(build, 'the defaults')}, generation emits "
                f"{emitted.tolist()}",
                expected=f"{wanted.tolist()}, which the library's own model emits by the same "
                "logits",
                mend="leave `generate` to the library, in every state",
            )
            require(
                positions <= enough or not cached,
                observed=f"built with {BUILDS[build] if cached else ''}, generation of {new} "
                f"tokens after {batch} prompt(s) of up to {length} looks up {positions} ids",
                expected=f"{enough}, as with a cache: without one each token costs a whole pass",
                mend="leave `use_cache` on in the generation config, in inference mode",
            )


def _require_emitted(build: str, told: str, found: Any, wanted: Any, *, mend: str) -> None:
    require(
        found == wanted,
        observed=f"built with {BUILDS.get(build, 'the defaults')}, {told} emits {found}",
        expected=f"{wanted}, which the library's own model emits",
        mend=mend,
    )


@requirement("GEN-05", MUST, profile="numerics")
def test_streamers_states_and_scores_are_given(subject: Subject) -> None:
    """A streamer is told each token as it is emitted, and hidden states and scores come back where
    they are asked for."""
    together = that_generates(subject)
    ids, mask = left_padded(together.inputs, 1, 6)
    for build, backbone, control in together.pairs():
        shapes, streamed = [], []
        for one in (control, backbone):
            streamer, llm = _Streamer(), one.llm
            with torch.no_grad():
                out = llm.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=3,
                    pad_token_id=int(together.inputs.ordinary[0]), streamer=streamer,
                    return_dict_in_generate=True, output_scores=True, output_hidden_states=True,
                )  # fmt: skip
            steps = [ids[0].tolist(), *([token] for token in out.sequences[0, 6:].tolist())]
            streamed.append(streamer.told == steps)
            shapes.append(
                {
                    "scores": len(out.scores or ()),
                    "hidden states": [
                        [tuple(state.shape) for state in step] for step in out.hidden_states or ()
                    ],
                }
            )
        wanted, found = shapes
        differing = [name for name in wanted if found[name] != wanted[name]]
        require(
            not differing and streamed[0] <= streamed[1],
            observed=f"built with {BUILDS.get(build, 'the defaults')}, "
            + (
                f"generation returns {differing[0]} {quoted(found[differing[0]], 120)}"
                if differing
                else "a streamer is not told the tokens that come back"
            ),
            expected=f"{quoted(wanted[differing[0]], 120)}, as the library's own model"
            if differing
            else "each of them: somebody reads along",
            mend="leave `generate` to the library, with every argument",
        )


@requirement("GEN-05", MUST, profile="numerics")
def test_an_answer_that_ended_ends_no_other(subject: Subject) -> None:
    """After an answer that has ended, the next question, which is longer by it, is answered as the
    library's own model answers it."""
    together = that_generates(subject)
    stops = list(eos_ids_of(together.control("inference").llm.generation_config))
    if not stops:
        raise NotApplicable("the checkpoint has no token that ends an answer")
    for build, backbone, control in together.pairs():
        emitted = []
        for one in (control, backbone):
            with torch.no_grad():
                first = _greedily(
                    one, together.inputs, together.inputs.ids(1, 6),
                    prefix_allowed_tokens_fn=lambda _, so_far: stops[:1],
                )  # fmt: skip
                said = torch.cat([together.inputs.ids(1, 6), torch.tensor(first)], 1)
                asked = torch.cat([said, together.inputs.ids(1, 4, 1)[:, 1:]], 1)
                emitted.append(_greedily(one, together.inputs, asked))
        wanted, found = emitted
        _require_emitted(
            build,
            "generation for the question after an answer that has ended",
            found,
            wanted,
            mend="make stopping criteria anew for each call",
        )


@requirement("GEN-05", MUST, profile="numerics")
def test_generation_in_threads_leaves_no_trace(subject: Subject) -> None:
    """Two generations that overlap, in a server's threads, leave the configs as they were."""
    together, judged = that_generates(subject), 0
    for build, backbone, control in together.pairs():
        changed: list[list[str]] = []
        raised: list[Any] = []
        for one in (control, backbone):
            one.eval()
            before = configs_of(one)
            calls = [
                functools.partial(_greedily, one, together.inputs, together.inputs.ids(1, length))
                for length in (5, 7)
            ]
            ended = overlapping(one.llm.get_input_embeddings(), *calls)
            if ended is None:
                break
            raised.append(next((got for got in ended if isinstance(got, BaseException)), None))
            after = configs_of(one)
            changed.append([key for key in before if before[key] != after.get(key)])
        if len(changed) < 2 or changed[0] or raised[0]:
            continue
        judged += 1
        if changed[1] or raised[1]:
            together.forget()
        require(
            not changed[1] and not raised[1],
            observed=f"built with {BUILDS.get(build, 'the defaults')}, of two generations that "
            "overlapped "
            + (
                f"one raised {quoted(str(raised[1]))}"
                if raised[1]
                else f"{changed[1]} of the configs are left otherwise"
            ),
            expected="the configs as they were, and two answers",
            mend="write nothing into what calls share, not even for the length of a call",
        )
    if not judged:
        raise NotApplicable("no two generations are under way at once")


class _Streamer:
    """Notes what it is told, as `transformers.TextStreamer` does."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append(value.flatten().tolist())

    def end(self) -> None:
        pass


@requirement("GEN-05", MUST, profile="numerics")
def test_several_tokens_stand_behind_a_cache(subject: Subject) -> None:
    """Behind the cache of a shared beginning, and where several tokens are checked at once
    (prompt lookup), generation reads all that is new and emits what the library's own model
    emits."""
    together = that_generates(subject)
    judged = 0
    for build, backbone, control in together.pairs():
        for told, use in _BEHIND_A_CACHE.items():
            with torch.no_grad():
                with refusal() as refused:
                    wanted = use(control, together.inputs)
                if refused:  # what the library cannot do is not asked of the subject
                    continue
                found = use(backbone, together.inputs)
            judged += 1
            _require_emitted(
                build,
                told,
                found,
                wanted,
                mend="leave `prepare_inputs_for_generation` to the library: behind a cache there "
                "may be more than one new token",
            )
    if not judged:
        raise NotApplicable("the library's model does not generate so")


def _behind_a_beginning(backbone: Any, inputs: Inputs) -> list[list[int]]:
    """Three tokens behind a text whose first half is in a cache already."""
    ids = inputs.ids(1, 12)
    begun = backbone.llm(input_ids=ids[:, :6], use_cache=True).past_key_values
    return _greedily(backbone, inputs, ids, past_key_values=begun)


def _by_lookup(backbone: Any, inputs: Inputs) -> list[list[int]]:
    """Tokens behind a text that says the same thing twice, candidates being taken from it."""
    said = inputs.ids(1, 9)[:, 1:4]
    return _greedily(backbone, inputs, said.repeat(1, 3), prompt_lookup_num_tokens=2)


_BEHIND_A_CACHE: dict[str, Callable[[Any, Inputs], list[list[int]]]] = {
    "generation behind the cache of a text's beginning": _behind_a_beginning,
    "generation with prompt_lookup_num_tokens=2": _by_lookup,
}


def _greedily(backbone: Any, inputs: Inputs, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    out = backbone.llm.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4,
        pad_token_id=int(inputs.ordinary[0]), use_cache=True, **options,
    )  # fmt: skip
    emitted: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return emitted


@requirement("GEN-05", MUST, profile="numerics")
def test_samples_differ(subject: Subject) -> None:
    """Two samples that are drawn one after the other differ, as those of the library's own model
    do."""
    together = that_generates(subject)
    ids, mask = left_padded(together.inputs, 1, 6)
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
            observed=f"built with {BUILDS.get(build, 'the defaults')}, two samples of twelve "
            "tokens of one prompt, drawn one after the other, are the same",
            expected="two samples: those of the library's own model differ",
            mend="seed nothing inside `generate`; whoever wants the same sample twice seeds before",
        )


@requirement("GEN-05", MUST, profile="numerics")
def test_copies_generate_by_themselves(subject: Subject) -> None:
    """A copy whose weights have changed since generates by its own."""
    together = that_generates(subject)
    ids, mask = left_padded(together.inputs, 2, 8)
    for build, backbone, control in together.pairs():
        emitted = []
        for one in (control, backbone):
            with refusal() as refused:  # CON-16 judges copying
                copied = copied_with_its_tokenizer(one)
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
            observed=f"built with {BUILDS.get(build, 'the defaults')}, a copy whose head was "
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
            observed=f"built with {BUILDS.get(build, 'the defaults')}, with {stops} among the eos "
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
    ids, mask = left_padded(inputs, 3, 12)
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


def _generated(
    backbone: Any, inputs: Inputs, batch: int, length: int, new: int, form: str
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The emitted ids, (batch, new), the logits they were chosen by, (new, batch, ids), and how
    many ids were looked up meanwhile."""
    ids, mask = left_padded(inputs, batch, length)
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
