"""PAD: the pad token and its wiring."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from conformance.assertions import quoted, require, tell
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.parity.library import text_config
from conformance.subject.subject import Subject
from conformance.suite.models import IGNORED_LABEL
from conformance.suite.properties import for_all
from conformance.suite.strategies import (
    ordinary_text,
    ordinary_texts,
    sequences,
    text_batches,
)


@requirement("PAD-01", MUST, needs=["CON-01"], uses=["get_tokenizer"])
def test_a_pad_token_exists(subject: Subject) -> None:
    """A pad token exists; its string encodes to exactly one id, its id decodes to that string, and
    it is special (skipped by `skip_special_tokens`)."""
    tokenizer = subject.tokenizer
    # Told for those who compare certificates (`conformance drift`).
    names = ("pad", "bos", "eos", "unk")
    ids_of = {name: getattr(tokenizer, f"{name}_token_id", None) for name in names}
    generation = getattr(subject.training.llm, "generation_config", None)
    stops = sorted(subject.generation_eos_ids, key=str) if generation is not None else None
    tell("special ids", {**ids_of, "generation eos": stops})
    require(
        tokenizer.pad_token is not None and tokenizer.pad_token_id is not None,
        observed=f"the tokenizer's pad token is {tokenizer.pad_token!r} with id "
        f"{tokenizer.pad_token_id!r}",
        expected="a pad token",
        mend='add one: `tokenizer.add_special_tokens({"pad_token": "<PAD>"})`',
    )
    pad, pad_id = tokenizer.pad_token, tokenizer.pad_token_id
    ids = subject.encode(pad, special=False)
    require(
        ids == [pad_id],
        observed=f"the pad token {pad!r} encodes to {ids}",
        expected=f"the one id {pad_id}",
        mend="add the pad token as a special token, so that it is never split",
    )
    require(
        subject.decode([pad_id]) == pad
        and subject.decode([pad_id], skip_special=True).strip() == "",
        observed=f"the pad id {pad_id} decodes to {subject.decode([pad_id])!r}, and to "
        f"{subject.decode([pad_id], skip_special=True)!r} without special tokens",
        expected=f"{pad!r}, and nothing without special tokens",
        mend='register it as special: `tokenizer.add_special_tokens({"pad_token": "<PAD>"})`',
    )


@requirement("PAD-02", MUST, needs=["PAD-01"], uses=["pad_token_id"])
def test_everyone_agrees_on_the_pad_id(subject: Subject) -> None:
    """Tokenizer, backbone and model config (nested text configs too) agree on the pad id."""
    for mode, backbone in (("training", subject.training), ("inference", subject.inference)):
        configs = {"llm.config": backbone.llm.config, "its text config": text_config(backbone.llm)}
        ids = {
            "the tokenizer": backbone.get_tokenizer().pad_token_id,
            "the backbone": backbone.pad_token_id,
            # A config of configs may leave pad ids to the inner ones.
            **{
                name: config.pad_token_id
                for name, config in configs.items()
                if hasattr(config, "pad_token_id")
            },
        }
        require(
            len(set(ids.values())) == 1,
            observed=f"in {mode} mode the pad id is "
            + ", ".join(f"{value} in {name}" for name, value in ids.items()),
            expected="one and the same id",
            mend="after adding the pad token set `llm.config.pad_token_id = "
            "tokenizer.pad_token_id`",
            pad_ids=ids,
        )


@requirement("PAD-03", MUST, needs=["PAD-01"])
def test_pad_is_a_token_of_its_own(subject: Subject) -> None:
    """The pad id is none of bos, eos, unk, nor any of the generation eos ids."""
    tokenizer = subject.tokenizer
    taken = {
        "bos": [tokenizer.bos_token_id],
        "eos": [tokenizer.eos_token_id],
        "unk": [tokenizer.unk_token_id],
        "a generation eos": list(subject.generation_eos_ids),
    }
    same = [name for name, ids in taken.items() if tokenizer.pad_token_id in ids]
    require(
        not same,
        observed=f"the pad id {tokenizer.pad_token_id} is also {' and '.join(same)}",
        expected="an id that means padding and nothing else",
        mend='add a token of its own, `tokenizer.add_special_tokens({"pad_token": "<PAD>"})`: '
        "with pad = eos the model "
        "never learns to stop",
    )


@requirement("PAD-04", SHOULD, needs=["PAD-01"])
def test_generation_pads_with_the_pad(subject: Subject) -> None:
    """The generation config carries the same pad id."""
    pad = subject.tokenizer.pad_token_id
    pads = {
        mode: backbone.llm.generation_config.pad_token_id
        for mode, backbone in (("training", subject.training), ("inference", subject.inference))
    }
    require(
        set(pads.values()) == {pad},
        observed=f"generation pads with {pads['training']} in training mode and "
        f"{pads['inference']} in inference mode",
        expected=f"the tokenizer's pad id {pad}",
        mend="set `llm.generation_config.pad_token_id = tokenizer.pad_token_id`",
    )


@requirement("PAD-05", MUST, needs=["PAD-01"], uses=["embed_input_ids", "pad_token_id"])
def test_every_token_embeds(subject: Subject) -> None:
    """0 ≤ pad id < embedding rows, and every id below `len(tokenizer)` embeds."""
    rows = subject.training.llm.get_input_embeddings().weight.shape[0]
    highest = max(
        len(subject.tokenizer) - 1, subject.tokenizer.pad_token_id, subject.training.pad_token_id
    )
    lowest = min(subject.tokenizer.pad_token_id, subject.training.pad_token_id)
    require(
        lowest >= 0 and highest < rows,
        observed=f"ids go from pad id {lowest} up to {highest}, and the embedding has {rows} rows",
        expected="a row for every id",
        mend="resize after adding the pad token: `llm.resize_token_embeddings(len(tokenizer), "
        "pad_to_multiple_of=64)`",
    )
    with torch.no_grad():
        embedded = subject.training.embed_input_ids(
            torch.arange(len(subject.tokenizer)).unsqueeze(0)
        )
    require(
        embedded.shape[1] == len(subject.tokenizer),
        observed=f"{len(subject.tokenizer)} ids embedded to shape {tuple(embedded.shape)}",
        expected="one row each",
        mend="return the embedding's output untouched from `embed_input_ids`",
    )


@requirement("PAD-06", MUST, needs=["PAD-01"])
@for_all(texts=text_batches)
def test_batches_pad_on_the_right(subject: Subject, texts: list[str]) -> None:
    """Batches pad on the right in training mode, and on the left where a host sets `padding_side`
    so; the attention mask is 0 exactly on the padding, and 1 on an eos inside the text."""
    tokenizer = subject.tokenizer
    texts = [texts[0] + (tokenizer.eos_token or "") + texts[0], *texts[1:]]
    batch = tokenizer(texts, padding=True)
    width = max(len(subject.encode(text)) for text in texts)
    if hasattr(tokenizer, "pad"):  # with which a collator pads what was encoded text by text
        encoded = [subject.encode(text) for text in texts]
        masked = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in encoded]
        handed_in: dict[str, Any] = {"": masked}
        # Which tokenizers make a mask for.
        if "attention_mask" in getattr(tokenizer, "model_input_names", ()):
            handed_in |= {
                " of ids without a mask": [{"input_ids": ids} for ids in encoded],
                " of ids in one dictionary": {"input_ids": encoded},
            }
        for told, features in handed_in.items():
            collated = tokenizer.pad(features, return_tensors="pt")
            found = {name: collated[name].tolist() for name in ("input_ids", "attention_mask")}
            require(
                found["input_ids"] == batch.input_ids
                and found["attention_mask"] == batch.attention_mask,
                observed=f"`tokenizer.pad`{told} gives {quoted(found, 300)}",
                expected=f"{quoted(dict(batch), 300)}, as encoding the batch with padding=True "
                "does",
                mend="leave `pad` to the library",
            )
    for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True):
        alone = subject.encode(text)
        padding = width - len(alone)
        require(
            list(ids) == alone + [tokenizer.pad_token_id] * padding,
            observed=f"{quoted(text)} in a batch encodes to {quoted(list(ids), 200)}",
            expected=f"its {len(alone)} ids, then {padding} times the pad id "
            f"{tokenizer.pad_token_id}",
            mend='load the tokenizer with `padding_side="right"`',
        )
        require(
            list(mask) == [1] * len(alone) + [0] * padding,
            observed=f"the attention mask of {quoted(text)} is {quoted(list(mask), 200)}",
            expected=f"{len(alone)} ones, then {padding} zeros",
            mend="use the tokenizer's own attention mask; `ids != pad` hides real tokens when ids "
            "coincide",
        )


@requirement("PAD-06", MUST, needs=["PAD-01"])
def test_hosts_may_pad_on_the_left(subject: Subject) -> None:
    """A host that sets `padding_side` to left, to generate from a batch, has it padded there."""
    texts = ["Stop.", "What should the robot do with the cup?"]
    for mode, backbone in (("training", subject.training), ("inference", subject.inference)):
        tokenizer = backbone.get_tokenizer()
        # Whether a batch encodes as its texts do alone is TOK-09's.
        rows = [list(ids) for ids in tokenizer(texts).input_ids]
        missing = [max(map(len, rows)) - len(ids) for ids in rows]
        expected = {
            "input_ids": [
                [tokenizer.pad_token_id] * padding + ids
                for padding, ids in zip(missing, rows, strict=True)
            ],
            "attention_mask": [
                [0] * padding + [1] * len(ids) for padding, ids in zip(missing, rows, strict=True)
            ],
        }
        before = tokenizer.padding_side
        try:
            tokenizer.padding_side = "left"
            batches = {"a batch": tokenizer(texts, padding=True)}
            if hasattr(tokenizer, "pad"):
                encoded = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]
                batches["`tokenizer.pad`"] = tokenizer.pad(encoded)
        finally:
            tokenizer.padding_side = before
        for name, batch in batches.items():
            found = {key: [list(row) for row in batch[key]] for key in expected}
            require(
                found == expected,
                observed=f'in {mode} mode, once a host sets padding_side = "left", {name} is '
                f"{quoted(found, 300)}",
                expected=quoted(expected, 300),
                mend="leave `padding_side` to whoever sets it: batched generation needs padding "
                "on the left",
            )


@requirement("PAD-07", MUST, needs=["PAD-01"])
@for_all(text=ordinary_text)
def test_text_never_encodes_to_pad(subject: Subject, text: str) -> None:
    """Ordinary text never encodes to the pad id."""
    ids = subject.encode(text)
    require(
        subject.tokenizer.pad_token_id not in ids,
        observed=f"{quoted(text)} encodes to {quoted(ids, 200)}: there is the pad id "
        f"{subject.tokenizer.pad_token_id}",
        expected="ids without the pad id",
        mend="use a new special token for padding, not one that text can produce",
    )


@requirement("PAD-07", MUST, needs=["PAD-01"])
def test_pad_was_no_piece_of_text_before(subject: Subject) -> None:
    """Ordinary text never encodes to the pad id."""
    pad, pad_id = subject.tokenizer.pad_token, subject.tokenizer.pad_token_id
    # Making a piece of the vocabulary special hides it from the property above, but not from text.
    require(
        not subject.published_vocabulary.is_text(pad_id),
        observed=f"the pad token {pad!r} has the id {pad_id}, which the published vocabulary "
        f"gives to a piece of text",
        expected="an id of its own",
        mend="use a new special token for padding, not one that text can produce",
    )


@requirement("PAD-08", MUST, needs=["PAD-01"])
@for_all(text=ordinary_text, edges=ordinary_texts)
def test_adding_the_pad_changed_no_encoding(subject: Subject, text: str) -> None:
    """Adding the pad token changed no encoding of any ordinary text: the published tokenizer gives
    the same ids, or the subject's own tokenizer class does before anything is added."""
    # Without special tokens: TOK-01 checks whether bos is added.
    ids, published = subject.encode(text, special=False), subject.published_vocabulary
    require(
        # What a class of its own does to text is no fault of the pad; TOK-09 judges that.
        published.gives(text, ids) or published.own_class_gives(text, ids),
        observed=f"{quoted(text)} encodes to {quoted(ids, 200)}",
        expected=f"{quoted(published.ids(text), 200)}, as with the published tokenizer",
        mend="add the pad token and nothing else to the tokenizer",
    )


@requirement("PAD-09", SHOULD, needs=["PAD-05"], uses=["embed_input_ids", "forward"])
@for_all(examples=4, batch=sequences, amount=lambda _: st.integers(1, 4))
def test_pad_row_gets_no_gradient(subject: Subject, batch: list[list[int]], amount: int) -> None:
    """In a training step with padding masked and its labels ignored, on either side, the pad row
    gets no gradient through the input path. (A bare lookup of the pad id is not such a step.)"""
    pad = subject.tokenizer.pad_token_id
    width = max(map(len, batch)) + amount
    # Causal attention alone hides padding on the right from real tokens: masks matter on the left.
    for on_the_left in (True, False):
        rows = []
        for tokens in batch:
            padding = [pad] * (width - len(tokens))
            rows.append(padding + tokens if on_the_left else tokens + padding)
        ids = torch.tensor(rows)
        mask = (ids != pad).long()
        # The label of the first real token behind padding is predicted from padding.
        labels = ids.masked_fill((mask & mask.roll(1, 1)) == 0, IGNORED_LABEL)
        if not bool((labels[:, 1:] != IGNORED_LABEL).any()):
            continue
        leaked = _gradient_at_padding(subject, ids, mask, labels)
        require(
            leaked == 0.0,
            observed=f"padding on the {'left' if on_the_left else 'right'}, masked and without "
            f"labels, gets gradients up to {leaked:.2e} from the loss",
            expected="exactly zero",
            mend="pass `attention_mask` and `labels` on to the model",
        )


def _gradient_at_padding(
    subject: Subject, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> float:
    """The largest gradient that one training step sends to the embeddings of padding."""
    backbone = subject.training
    embedded = backbone.embed_input_ids(ids).detach().requires_grad_()
    loss = backbone.forward(inputs_embeds=embedded, attention_mask=mask, labels=labels).loss
    (through_model,) = torch.autograd.grad(loss, embedded)
    return float(through_model[mask == 0].abs().max())
