"""GEN: generation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st

from conformance.assertions import require
from conformance.catalogue import MUST, requirement
from conformance.subject.subject import Subject
from conformance.suite.properties import for_all
from conformance.suite.strategies import sequences

FAVOURITES = 3
"""Tokens that are favoured one after the other, twice over: processors that forbid repeating look
at pairs and triples."""
_SAME_TOKEN = 40
"""As often one token follows itself in a row: a processor may forbid longer repeats too."""
LEAD = 0.01
"""The favourite's lead in the raw logits: a penalty of a few per cent takes it away."""


def _one_token_alone(subject: Subject) -> Iterator[dict[str, Any]]:
    special = set(subject.tokenizer.all_special_ids)
    token = next(one for one in range(len(subject.tokenizer)) if one not in special)
    yield {"prompt": [token, token], "favourites": [0] * (_SAME_TOKEN // 2)}


@requirement("GEN-04", MUST, needs=["CON-06", "EMB-02"])
@for_all(
    examples=8,
    edges=_one_token_alone,
    prompt=lambda s: sequences(s, max_length=12).map(lambda rows: rows[0]),
    favourites=lambda _: st.lists(st.integers(0, 12), min_size=FAVOURITES, max_size=FAVOURITES),
)
def test_greedy_is_the_argmax_of_raw_logits(
    subject: Subject, prompt: list[int], favourites: list[int]
) -> None:
    """Greedy means the argmax of the raw logits: no repetition penalty or other processor survives
    from the published generation config (recipes ship it verbatim)."""
    # Processors act on tokens that came before and on eos, which a tiny model hardly ever favours
    # by itself.
    candidates = [*prompt, *subject.generation_eos_ids[:1]]
    wanted = 2 * [candidates[place % len(candidates)] for place in favourites]
    ids, llm = torch.tensor([prompt]), subject.training.llm
    with _logits_favouring(llm, wanted, prompt), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = llm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(wanted),
            return_dict_in_generate=True,
            output_logits=True, pad_token_id=subject.tokenizer.pad_token_id,
        )  # fmt: skip
    emitted = out.sequences[0, ids.shape[1] :].tolist()
    greedy = [int(step[0].argmax()) for step in out.logits]
    require(
        emitted == greedy,
        observed=f"after {prompt}, generation with {_departures(llm.generation_config)} emitted "
        f"{emitted}",
        expected=f"{greedy}, the argmax of the raw logits at each step",
        mend="build the generation config without sampling, penalties, forbidden or forced "
        "tokens, keeping its eos ids",
    )


@contextmanager
def _logits_favouring(llm: Any, wanted: list[int], prompt: list[int]) -> Iterator[None]:
    """While the body runs, the head favours `wanted` one after the other, closely followed by a
    token that is new."""
    remaining = iter(wanted)
    taken = {*wanted, *prompt}
    runner_up = next(token for token in range(len(taken) + 1) if token not in taken)

    def favour(head: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        chosen = torch.full_like(logits, -1.0)
        chosen[..., runner_up] = 1.0 - LEAD
        chosen[..., next(remaining)] = 1.0
        return chosen

    handle = llm.get_output_embeddings().register_forward_hook(favour)
    try:
        yield
    finally:
        handle.remove()


def _departures(generation_config: Any) -> str:
    """The settings of a generation config that differ from transformers' defaults, without token
    ids and version."""
    settings = {
        name: value
        for name, value in generation_config.to_diff_dict().items()
        if not name.startswith("_") and not name.endswith(("_token_id", "_version"))
    }
    return ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "default settings"
