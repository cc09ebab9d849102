"""GEN: any call of `generate`, in any state, beside the control's.

As for `forward` (FWD-14), every pair of values of what a call is made of occurs in some row.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest import mock

import torch

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.control import CallRefused, Inputs, Row, covering, embeddings_of, plainer
from conformance.control.calls import declared_dropout, first_rows_alone
from conformance.subject.subject import Subject
from conformance.suite.generating import left_padded, that_generates
from conformance.suite.product import BUILDS, FIRST_ROWS, Compared

_LENGTH = 8
"""Tokens of the longest prompt."""
_LOSS = "after a loss and its gradients"
_UNMASKED = "of a padded batch without a mask"
_Options = dict[str, Any]


def _behind(length: int) -> Callable[..., torch.Tensor]:
    """A stop of a host's own: all rows end at this length, prompt and all."""

    def reached(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= length)

    return reached


_ASKED: Mapping[str, Callable[[list[int], list[int]], _Options]] = {
    "4 tokens": lambda said, few: {"max_new_tokens": 4},
    "num_beams=2 and num_return_sequences=2": lambda said, few: {
        "max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2,
    },
    # Of one token, as rounding moves what is drawn of several.
    "do_sample=True, top_k=1 and num_return_sequences=2": lambda said, few: {
        "do_sample": True, "max_new_tokens": 4, "top_k": 1, "num_return_sequences": 2,
    },
    # As good as greedy: nothing is left to chance.
    "do_sample=True and temperature=1e-5": lambda said, few: {
        "do_sample": True, "max_new_tokens": 4, "top_k": 0, "temperature": 1e-5,
    },
    "do_sample=True and top_p=1e-6": lambda said, few: {
        "do_sample": True, "max_new_tokens": 4, "top_k": 0, "top_p": 1e-6,
    },
    "the caller's own stopping_criteria": lambda said, few: {
        "max_new_tokens": 6, "stopping_criteria": [_behind(_LENGTH + 2)],
    },
    "the caller's own logits_processor": lambda said, few: {
        "max_new_tokens": 4, "logits_processor": [lambda _, scores: scores.roll(1, -1)],
    },
    f"max_length={_LENGTH + 2}": lambda said, few: {"max_length": _LENGTH + 2},
    "eos_token_id of the caller's": lambda said, few: {
        "max_new_tokens": 5, "eos_token_id": said[1:2],
    },
    "bad_words_ids": lambda said, few: {
        "max_new_tokens": 4, "bad_words_ids": [[one] for one in said],
    },
    "prefix_allowed_tokens_fn": lambda said, few: {
        "max_new_tokens": 3, "prefix_allowed_tokens_fn": lambda _, so_far: few,
    },
    "repetition_penalty=5.0": lambda said, few: {"max_new_tokens": 6, "repetition_penalty": 5.0},
    "no_repeat_ngram_size=1": lambda said, few: {"max_new_tokens": 6, "no_repeat_ngram_size": 1},
    "use_cache=False": lambda said, few: {"max_new_tokens": 4, "use_cache": False},
}  # fmt: skip
"""The arguments of each call but those that all have, made of what is said greedily and of a few
tokens."""
_CALLS = {
    "asked": tuple(_ASKED),
    "build": ("training", "inference", "all at once"),
    "history": (
        "", "after generation of 12 tokens", _LOSS, "after a generation that raised",
    ),
    "prompts": (
        "of a padded batch", "of one text", "as embeddings", "as ids and embeddings",
        _UNMASKED,
    ),
    "mode": ("", "in train()"),
    "by": ("", "by a generation_config", "by the settings of `llm.generation_config`"),
    "returned": ("", "with return_dict_in_generate=True", "with inference_mode"),
}  # fmt: skip
"""What a call that generates is made of, the plainest first."""
_FUNCTIONS = ("stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn")
"""What no config can hold."""


@requirement("GEN-05", MUST, profile="numerics")
def test_any_call_generates_as_the_librarys(subject: Subject) -> None:
    """Beams, samples, several sequences a prompt, bounds, stops, penalties, forbidden words and
    functions of the caller's, given as arguments, in a generation config or in the model's own,
    for ids or embeddings, in `train()` too, and after other calls, give what the library's own
    model gives."""
    together, judged = that_generates(subject), 0
    gc.collect()  # a graph that waits for it remembers parameters by their shape
    # Most of the time of a step goes into logits over a whole vocabulary: what is found among its
    # first rows counts if the whole differs too.
    tried = [together.inputs]
    with refusal(CallRefused), first_rows_alone(together.control("training"), FIRST_ROWS):
        tried.insert(0, together.inputs.within(FIRST_ROWS))
    asked = {inputs.rows: _asked(together, inputs) for inputs in tried}
    # Where a model drops activations out, no two calls in train() are alike.
    drops = bool(declared_dropout(together.control("training")))

    def makes_sense(row: Row) -> bool:
        return _can_be_called(row) and not (drops and row.get("mode", ""))

    def apart(row: Row, inputs: Inputs) -> tuple[Any, ...] | None:
        """What the two emit if it differs, nothing if it is the same, None if the library
        refuses."""
        backbone = together.backbone(row["build"])
        control = together.control(row["build"])
        if backbone is None:
            return None
        frozen = not any(parameter.requires_grad for parameter in backbone.llm.parameters())
        if frozen and row["history"] == _LOSS:
            return None  # no loss has a gradient
        named = inspect.signature(backbone.llm.forward).parameters
        if row["prompts"] == _UNMASKED and "attention_mask" not in named:
            return None  # the library infers none for it
        options = asked[inputs.rows][row["asked"]]
        with refusal() as refused:
            wanted = _emitted(control, row, options, inputs)
        if refused:
            return None
        found: Any = None
        with refusal() as refused:
            found = _emitted(backbone, row, options, inputs)
        if refused:
            found = f"{type(refused[0]).__name__}: {refused[0]}"
        return () if found == wanted else (found, wanted)

    def differ(row: Row) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = None
        for inputs in tried:
            if not (found := apart(row, inputs)):
                break
        return found

    plainest = {name: values[0] for name, values in _CALLS.items()}
    for row in covering(_CALLS, makes_sense):
        found = differ(row)
        judged += found is not None
        if not found:
            continue
        row = plainer(row, plainest, lambda row: makes_sense(row) and bool(differ(row)))
        observed, expected = differ(row) or found
        require(
            observed == expected,
            observed=f"built with {BUILDS.get(row['build'], 'the defaults')}, generation with "
            f"{_told(row)} gives {quoted(observed, 160)}",
            expected=f"{quoted(expected, 160)}, as the library's own model does",
            mend="leave `generate` to the library, with every argument and in every state",
        )
    if not judged:
        raise NotApplicable("the library's model does not generate")


def _told(row: Row) -> str:
    others = [value for name, value in row.items() if name not in ("asked", "build", "prompts")]
    return ", ".join([row["asked"], f"prompts {row['prompts']}", *filter(None, others)])


def _can_be_called(row: Row) -> bool:
    asked, prompts = row.get("asked", ""), row.get("prompts", "")
    return not (
        (row.get("by", "") and any(name in asked for name in _FUNCTIONS))
        # They take the ids of the prompt into account.
        or ("embeddings" in prompts and ("penalty" in asked or "ngram" in asked))
        # The length of a prompt of embeddings counts in some releases only.
        or ("embeddings" in prompts and ("max_length" in asked or "stopping" in asked))
    )


def _asked(together: Compared, inputs: Inputs) -> Mapping[str, _Options]:
    control = together.control("inference")
    ids, mask = left_padded(inputs, 2, _LENGTH)
    filling, *few = inputs.ordinary[:9].tolist()
    with torch.no_grad(), _cut(control, inputs):
        said = control.llm.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=4,
            pad_token_id=filling,
        )[0, _LENGTH:].tolist()  # fmt: skip
    return {name: made(said, few) for name, made in _ASKED.items()}


def _emitted(backbone: Any, row: Row, asked: _Options, inputs: Inputs) -> dict[str, Any]:
    """The ids that a call emits in this row, and the mode after it."""
    from transformers import GenerationConfig

    llm = backbone.llm
    options = {"do_sample": False, "pad_token_id": int(inputs.ordinary[0]), **asked}
    ids, mask = left_padded(inputs, 1 if row["prompts"] == "of one text" else 2, _LENGTH)
    given = {"input_ids": ids, "attention_mask": mask}
    if row["prompts"] == _UNMASKED:  # the library infers it from the pad
        given = {"input_ids": ids.masked_fill(mask == 0, options["pad_token_id"])}
    with ExitStack() as stack:
        stack.enter_context(_cut(backbone, inputs))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        _live(backbone, row["history"], inputs)
        stack.enter_context(
            torch.inference_mode() if "inference_mode" in row["returned"] else torch.no_grad()
        )
        if "embeddings" in row["prompts"]:
            given["inputs_embeds"] = embeddings_of(backbone, ids)
            if row["prompts"] == "as embeddings":
                del given["input_ids"]
        if row["by"] == "by a generation_config":
            options = {"generation_config": GenerationConfig(**options)}
        elif row["by"]:
            # In place: what wraps a model may hand its config out, and take no other.
            stack.enter_context(mock.patch.dict(vars(llm.generation_config), options))
            options = {}
        if "return_dict" in row["returned"]:
            options["return_dict_in_generate"] = True
        backbone.train(bool(row["mode"]))
        try:
            out = llm.generate(**given, **options)
            mode = {module.training for module in llm.modules()}
        finally:
            backbone.eval()
    ids_out = out.sequences if "return_dict" in row["returned"] else out
    start = _LENGTH if "input_ids" in given else 0
    return {"ids": ids_out[:, start:].tolist(), "modules in train()": sorted(mode)}


def _cut(backbone: Any, inputs: Inputs) -> AbstractContextManager[None]:
    return first_rows_alone(backbone, inputs.rows) if inputs.rows else nullcontext()


def _live(backbone: Any, history: str, inputs: Inputs) -> None:
    """What was done with the instance before."""
    ids, mask = left_padded(inputs, 3, 11)
    greedy = {"do_sample": False, "pad_token_id": int(inputs.ordinary[0])}
    if history == "after generation of 12 tokens":
        with torch.no_grad():
            backbone.llm.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, **greedy
            )
    elif history == _LOSS:
        backbone.train()
        backbone.forward(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        backbone.zero_grad(set_to_none=True)
        backbone.eval()
    elif history:
        with refusal(), torch.no_grad():
            backbone.llm.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=6,
                stopping_criteria=[_broken_off], **greedy,
            )  # fmt: skip


def _broken_off(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    """A stop that fails behind two tokens, as one does whose client has gone."""
    if ids.shape[1] > 12:
        raise ConnectionError("nobody listens")
    return torch.zeros(len(ids), dtype=torch.bool)
