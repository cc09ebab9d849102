"""Gives a language model a separate pad token, and embedding rows to match its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backbones.transformers_releases import RESIZE_WITHOUT_MEANS, ZeroRandomFills

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_TOKEN = "<PAD>"
ROW_MULTIPLE = 64
"""Row counts that suit tensor cores:
https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication"""


def add_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes `<PAD>` the pad token: a special token, so that no ordinary text encodes to it.
    Idempotent."""
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def fit_vocabulary(llm: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Resizes `llm`'s embeddings for `tokenizer`, and sets the pad id wherever it is read.

    The number of rows becomes the next multiple of 64 that holds every row of the checkpoint and
    every id of the tokenizer: 32,000 becomes 32,064, Phi's 51,200 stays. Checkpoint rows keep their
    values; `_fill_new_rows` fills the new ones. The pad row gets no gradient through the input
    path.
    """
    rows = llm.get_input_embeddings().num_embeddings
    with ZeroRandomFills():
        llm.resize_token_embeddings(
            max(rows, len(tokenizer)), pad_to_multiple_of=ROW_MULTIPLE, **RESIZE_WITHOUT_MEANS
        )
    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    for parameter in {id(p): p for p in (*embedding.parameters(), *head.parameters())}.values():
        _fill_new_rows(parameter, rows)
    embedding.padding_idx = tokenizer.pad_token_id

    inner = llm.base_model
    inner.vocab_size, inner.padding_idx = embedding.num_embeddings, tokenizer.pad_token_id
    llm.config.pad_token_id = tokenizer.pad_token_id
    if (text_config := getattr(llm.config, "text_config", None)) is not None:
        text_config.pad_token_id = tokenizer.pad_token_id
    llm.generation_config.pad_token_id = tokenizer.pad_token_id


@torch.no_grad()
def _fill_new_rows(parameter: torch.nn.Parameter, trained: int) -> None:
    """Sets row `trained + k` to the midpoint of two trained rows, a different pair for each k.

    Midpoints have the scale of trained rows and differ from each other, unlike the mean of all
    rows; they need no random numbers, so every rank and run gets the same rows; and in the head a
    midpoint's logit is the mean of two trained logits, so greedy decoding never chooses a row that
    no text has trained.
    """
    new = parameter.shape[0] - trained
    if new > 0:
        stride = max(trained // new, 1)
        first = torch.arange(new, device=parameter.device) * stride % trained
        second = (first + max(stride // 2, 1)) % trained
        parameter[trained:] = (parameter[first] + parameter[second]) / 2
