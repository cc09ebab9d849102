"""GEN: generation."""

from __future__ import annotations

import warnings

import torch

from conformance.assertions import require
from conformance.catalogue import MUST, requirement
from conformance.properties import for_all
from conformance.strategies import sequences
from conformance.subject import Subject

NEW_TOKENS = 6


@requirement("GEN-04", MUST, needs=["CON-06"])
@for_all(examples=8, batch=lambda s: sequences(s, max_length=12).map(lambda rows: rows[:1]))
def test_greedy_is_the_argmax_of_raw_logits(subject: Subject, batch: list[list[int]]) -> None:
    """Greedy means the argmax of the raw logits: no repetition penalty or other processor survives from the published
    generation config (recipes ship it verbatim)."""
    ids = torch.tensor(batch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = subject.training.llm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, return_dict_in_generate=True,
            output_logits=True, pad_token_id=subject.tokenizer.pad_token_id,
        )  # fmt: skip
    emitted = out.sequences[0, ids.shape[1] :].tolist()
    greedy = [int(step[0].argmax()) for step in out.logits]
    require(
        emitted == greedy,
        observed=f"generation emitted {emitted}",
        expected=f"{greedy}, the argmax of the raw logits at each step",
        mend="build the generation config without sampling, penalties or forced tokens, keeping its eos ids",
    )
